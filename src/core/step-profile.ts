/** Where the time of steps went, as plain data. Counters only grow: what happened between two readings is their difference. */
import {
  HEADER_ROWS,
  PHASE_COLLECTIVE_US,
  PHASE_COLLECTIVES,
  PHASE_GAP_US,
  PHASE_GAPS,
  PHASE_PROFILER_US,
  PHASE_STEP_US,
  PHASE_STEPS,
  PHASE_WAIT_US,
  PHASES,
  type Phase,
  ProfileBlock,
  ROW_BYTES,
  ROW_CALLS,
  ROW_FLOPS,
  ROW_US,
  type StepProfileHandle,
} from "./step-profile-memory.js";

/** Calls of one kernel; those that multiply with weights are counted for each layer apart: `linear.qkv`, `linear.head`. */
export interface KernelProfile {
  readonly name: string;
  readonly calls: number;
  readonly ms: number;
  /** Bytes of weights, cache and activations that the calls read and wrote, each once. */
  readonly bytes: number;
  /** Multiplications and additions of f32. */
  readonly flops: number;
}

/** Calls of collectives on one rank. */
export interface CollectivesProfile {
  readonly calls: number;
  readonly ms: number;
  /** Part of `ms` until the last rank had come. */
  readonly waitMs: number;
}

/** Steps of one phase on one rank. `stepMs` is kernels, collectives, `profilerMs` and `outsideMs` together. */
export interface PhaseProfile {
  readonly steps: number;
  /** From when the rank took a step until it was done with it. */
  readonly stepMs: number;
  readonly kernels: readonly KernelProfile[];
  readonly collectives: CollectivesProfile;
  /** What measuring cost inside of steps; subtracted everywhere else. */
  readonly profilerMs: number;
  /** Rest of the steps: layers, sampling, calls of the addon. */
  readonly outsideMs: number;
  /** From the end of a step to the beginning of the next: signals, the engine. */
  readonly betweenMs: number;
  readonly gaps: number;
}

export interface RankProfile {
  readonly rank: number;
  readonly phases: Readonly<Record<Phase, PhaseProfile>>;
}

/** One entry a rank. */
export type StepProfile = readonly RankProfile[];

/** Reads what the ranks have counted so far; to be called between steps. */
export function readStepProfile(handle: StepProfileHandle): StepProfile {
  return Array.from({ length: handle.worldSize }, (_, rank) => {
    const block = new ProfileBlock(handle, rank);
    return { rank, phases: { decode: readPhase(block, "decode"), prefill: readPhase(block, "prefill") } };
  });
}

function readPhase(block: ProfileBlock, phase: Phase): PhaseProfile {
  const index = PHASES.indexOf(phase);
  const counters = block.counters[index] ?? new Float64Array();
  const counter = (at: number): number => counters[at] ?? 0;
  const kernels = readKernels(block, index);
  const collectives = readCollectives(counter);
  const profilerMs = counter(PHASE_PROFILER_US) / 1000;
  const stepMs = counter(PHASE_STEP_US) / 1000;
  const kernelMs = kernels.reduce((sum, { ms }) => sum + ms, 0);
  return {
    steps: counter(PHASE_STEPS),
    stepMs,
    kernels,
    collectives,
    profilerMs,
    outsideMs: stepMs - kernelMs - collectives.ms - profilerMs,
    betweenMs: counter(PHASE_GAP_US) / 1000,
    gaps: counter(PHASE_GAPS),
  };
}

function readKernels(block: ProfileBlock, phase: number): readonly KernelProfile[] {
  const rows = block.rows[phase] ?? new Float64Array();
  const names = Array.from({ length: block.header[HEADER_ROWS] ?? 0 }, (_, row) => block.nameOf(row));
  return names.flatMap((name, row) => {
    const field = (at: number): number => rows[block.rowAt(row) + at] ?? 0;
    const calls = field(ROW_CALLS);
    if (calls === 0) return [];
    return [{ name, calls, ms: field(ROW_US) / 1000, bytes: field(ROW_BYTES), flops: field(ROW_FLOPS) }];
  });
}

function readCollectives(counter: (at: number) => number): CollectivesProfile {
  const calls = counter(PHASE_COLLECTIVES);
  const ms = counter(PHASE_COLLECTIVE_US) / 1000;
  return { calls, ms, waitMs: Math.min(ms, counter(PHASE_WAIT_US) / 1000) };
}

/** What was counted after `earlier` was read. */
export function profileSince(later: StepProfile, earlier: StepProfile): StepProfile {
  return later.map(({ rank, phases }, index) => {
    const before = earlier[index]?.phases;
    if (before === undefined) return { rank, phases };
    const { decode, prefill } = phases;
    return {
      rank,
      phases: { decode: difference(decode, before.decode), prefill: difference(prefill, before.prefill) },
    };
  });
}

function difference(later: PhaseProfile, earlier: PhaseProfile): PhaseProfile {
  const kernels = later.kernels.flatMap((kernel) => {
    const before = earlier.kernels.find(({ name }) => name === kernel.name);
    if (before === undefined) return [kernel];
    const calls = kernel.calls - before.calls;
    if (calls === 0) return [];
    const { name, ms, bytes, flops } = kernel;
    return [{ name, calls, ms: ms - before.ms, bytes: bytes - before.bytes, flops: flops - before.flops }];
  });
  return {
    steps: later.steps - earlier.steps,
    stepMs: later.stepMs - earlier.stepMs,
    kernels,
    collectives: {
      calls: later.collectives.calls - earlier.collectives.calls,
      ms: later.collectives.ms - earlier.collectives.ms,
      waitMs: later.collectives.waitMs - earlier.collectives.waitMs,
    },
    profilerMs: later.profilerMs - earlier.profilerMs,
    outsideMs: later.outsideMs - earlier.outsideMs,
    betweenMs: later.betweenMs - earlier.betweenMs,
    gaps: later.gaps - earlier.gaps,
  };
}
