/** From what ranks counted to what a person, or a program, is shown: times of a step, speeds, shares of the machine's limits. */
import type { KernelProfile, PhaseProfile, RankProfile } from "../index.js";
import { formatNumber } from "./quantities.js";
import { type TextColumn, textTable } from "./text-table.js";

/** What a rank cannot exceed; null where it is not known. */
export interface RankLimits {
  /** Bytes that a rank can stream from memory, in 10^9 a second. */
  readonly dramGbps: number | null;
  /** Multiplications and additions of f32 that a rank can do, in 10^9 a second. */
  readonly fmaGflops: number | null;
}

/** Calls of one kernel in an average step. */
export interface KernelBreakdown {
  readonly name: string;
  readonly calls: number;
  readonly us: number;
  readonly gbps: number;
  readonly gflops: number;
  /** Time that the slower of its bytes and its operations would take at the limits, by the time it took; null without limits. */
  readonly share_of_limit: number | null;
}

/** An average step of one rank; microseconds. `total_us` is the sum of kernels, collectives, `outside_us` and `between_us`. */
export interface RankBreakdown {
  readonly rank: number;
  readonly steps: number;
  readonly kernels: readonly KernelBreakdown[];
  readonly kernels_us: number;
  readonly collectives: { readonly calls: number; readonly us: number; readonly wait_us: number };
  /** In the step, in neither of them. */
  readonly outside_us: number;
  /** From one step to the next. */
  readonly between_us: number;
  readonly total_us: number;
  /** Of the total: outside and between. */
  readonly overhead_share: number;
  /** What measuring added, not in the total. */
  readonly profiler_us: number;
}

/** The average decode step of a rank. */
export function decodeBreakdown({ rank, phases }: RankProfile, limits: RankLimits): RankBreakdown {
  const profile = phases.decode;
  const steps = Math.max(1, profile.steps);
  const perStep = (ms: number): number => (ms * 1000) / steps;
  const { collectives } = profile;
  const kernels = profile.kernels
    .toSorted((a, b) => b.ms - a.ms)
    .map((kernel) => kernelBreakdown(kernel, steps, limits));
  const betweenUs = (profile.betweenMs * 1000) / Math.max(1, profile.gaps);
  const insideUs = perStep(profile.stepMs - profile.profilerMs);
  const totalUs = insideUs + betweenUs;
  const outsideUs = perStep(profile.outsideMs);
  return {
    rank,
    steps: profile.steps,
    kernels,
    kernels_us: perStep(kernelMs(profile)),
    collectives: {
      calls: collectives.calls / steps,
      us: perStep(collectives.ms),
      wait_us: perStep(collectives.waitMs),
    },
    outside_us: outsideUs,
    between_us: betweenUs,
    total_us: totalUs,
    overhead_share: totalUs > 0 ? (outsideUs + betweenUs) / totalUs : 0,
    profiler_us: perStep(profile.profilerMs),
  };
}

function kernelMs({ kernels }: PhaseProfile): number {
  return kernels.reduce((sum, { ms }) => sum + ms, 0);
}

function kernelBreakdown(kernel: KernelProfile, steps: number, limits: RankLimits): KernelBreakdown {
  const { name, calls, ms, bytes, flops } = kernel;
  const { dramGbps, fmaGflops } = limits;
  const speed = (amount: number): number => (ms > 0 ? amount / (ms * 1e6) : 0);
  const shares = [
    ...(dramGbps === null ? [] : [speed(bytes) / dramGbps]),
    ...(fmaGflops === null ? [] : [speed(flops) / fmaGflops]),
  ];
  return {
    name,
    calls: calls / steps,
    us: (ms * 1000) / steps,
    gbps: speed(bytes),
    gflops: speed(flops),
    share_of_limit: shares.length === 0 ? null : Math.max(...shares),
  };
}

const COLUMNS: readonly TextColumn[] = [
  { title: "" },
  { title: "calls", align: "right" },
  { title: "us", align: "right" },
  { title: "%", align: "right" },
  { title: "GB/s", align: "right" },
  { title: "GFLOP/s", align: "right" },
  { title: "of limit", align: "right" },
];

/** Lines that show a rank's average step. */
export function breakdownLines(step: RankBreakdown): readonly string[] {
  const share = (us: number): string => percent(step.total_us > 0 ? us / step.total_us : 0);
  const kernels = step.kernels.map(({ name, calls, us, gbps, gflops, share_of_limit }) => [
    name,
    formatNumber(calls),
    us.toFixed(1),
    share(us),
    gbps.toFixed(1),
    gflops.toFixed(1),
    share_of_limit === null ? "-" : percent(share_of_limit),
  ]);
  const { collectives } = step;
  const line = (name: string, us: number, calls = ""): readonly string[] => [name, calls, us.toFixed(1), share(us)];
  const table = textTable(COLUMNS, [
    ...kernels,
    line("collectives: waiting", collectives.wait_us, formatNumber(collectives.calls)),
    line("collectives: exchange", collectives.us - collectives.wait_us),
    line("outside kernels", step.outside_us),
    line("between steps", step.between_us),
    line("total", step.total_us),
  ]);
  const measuring = `overhead ${percent(step.overhead_share)}; measuring added ${step.profiler_us.toFixed(1)} us, which are in no line`;
  return [`rank ${step.rank}, average of ${step.steps} decode steps`, ...table, measuring];
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)}%`;
}
