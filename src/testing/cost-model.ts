/**
 * What a step costs at a world size: the collectives of a trace, priced by what the shared-memory collectives do, and the
 * computing between them. A model, not a measurement: it knows two numbers about a machine.
 */
import { DEFAULT_SLOT_BYTES, defaultOneShotBytes } from "../collectives/region.js";
import { OptionError } from "../core/errors.js";
import type { CollectiveRecord, CollectiveTrace, StepRecord } from "./collective-trace.js";

/** How long ranks compute between collectives. */
export type ComputeCost =
  /** As long as it took when the trace was recorded, each rank alone. */
  | "measured"
  /** As long as reading the rank's parameters once takes, at so many 10^9 bytes a second; spread evenly over the step. */
  | { readonly weightGbps: number }
  /** So many milliseconds a step, on every rank; spread evenly over the step. */
  | { readonly stepMs: number };

export interface CostModelOptions {
  /** Microseconds from the last rank's arrival at a meeting until all go on. */
  readonly latencyUs: number;
  /** Payload that one rank copies or sums, in 10^9 bytes a second. */
  readonly gbps: number;
  /** Default "measured". */
  readonly compute?: ComputeCost | undefined;
  /** Multiplied with the computing, for ranks that slow each other down. Default 1. */
  readonly computeScale?: number | undefined;
}

/** What collectives of one kind at one place cost together. */
export interface SiteCost {
  readonly site: string;
  readonly kind: CollectiveRecord["kind"];
  readonly count: number;
  /** Payload of all ranks together. */
  readonly bytes: number;
  readonly ms: number;
}

export interface StepPrediction {
  readonly worldSize: number;
  readonly stepMs: number;
  /** Of the slowest rank between any two collectives. */
  readonly computeMs: number;
  /** Part of `computeMs` in which the average rank waits for the slowest. */
  readonly imbalanceMs: number;
  readonly collectiveMs: number;
  /** In the order of their first appearance. */
  readonly sites: readonly SiteCost[];
}

export class CostModel {
  readonly #options: CostModelOptions;

  /** Use `costModel`. */
  constructor(options: CostModelOptions) {
    this.#options = options;
  }

  /** Microseconds of one collective, from the arrival of the last rank. */
  collectiveUs({ kind, bytes }: CollectiveRecord): number {
    const worldSize = bytes.length;
    if (worldSize === 1) return 0;
    const most = Math.max(...bytes);
    switch (kind) {
      case "allReduce":
        return this.#allReduceUs(most, worldSize);
      case "allGather": {
        const total = bytes.reduce((sum, each) => sum + each, 0);
        return this.#us(roundsOf(most), total - Math.min(...bytes));
      }
      case "broadcast":
        return this.#us(roundsOf(most), most);
      case "barrier":
        return this.#us(1, 0);
    }
  }

  /** Milliseconds that each rank computes before each collective of a step and after the last one: `[segment][rank]`. */
  computeMs(trace: CollectiveTrace, step: StepRecord): readonly (readonly number[])[] {
    const { compute = "measured", computeScale = 1 } = this.#options;
    const measured = [...step.collectives.map((collective) => collective.computeMs), step.tailMs];
    if (compute === "measured") return measured.map((ranks) => ranks.map((ms) => ms * computeScale));
    const perRank = trace.parameterBytes.map((bytes) => {
      const ms = "stepMs" in compute ? compute.stepMs : bytes / (compute.weightGbps * 1e6);
      return (ms * computeScale) / measured.length;
    });
    return measured.map(() => perRank);
  }

  /** Predicts a step of a trace, the last one unless told otherwise. Throws OptionError `INVALID_OPTION` if it has none. */
  predict(trace: CollectiveTrace, index = trace.steps.length - 1): StepPrediction {
    const step = trace.steps[index];
    if (step === undefined) throw invalid("step", `a step below ${trace.steps.length}`, index);
    let computeMs = 0;
    let meanMs = 0;
    for (const ranks of this.computeMs(trace, step)) {
      computeMs += Math.max(...ranks);
      meanMs += ranks.reduce((sum, ms) => sum + ms, 0) / ranks.length;
    }
    const sites = this.#sites(step);
    const collectiveMs = sites.reduce((sum, { ms }) => sum + ms, 0);
    return {
      worldSize: trace.worldSize,
      stepMs: computeMs + collectiveMs,
      computeMs,
      imbalanceMs: computeMs - meanMs,
      collectiveMs,
      sites,
    };
  }

  #sites(step: StepRecord): readonly SiteCost[] {
    const sites = new Map<string, SiteCost>();
    for (const record of step.collectives) {
      const { site, kind } = record;
      const key = `${kind} ${site}`;
      const { count, bytes, ms } = sites.get(key) ?? { count: 0, bytes: 0, ms: 0 };
      sites.set(key, {
        site,
        kind,
        count: count + 1,
        bytes: bytes + record.bytes.reduce((sum, each) => sum + each, 0),
        ms: ms + this.collectiveUs(record) / 1000,
      });
    }
    return [...sites.values()];
  }

  /** One-shot or reduce-scatter and all-gather, in rounds of a slot, as src/collectives/region.ts decides. */
  #allReduceUs(bytes: number, worldSize: number): number {
    const oneShotBytes = defaultOneShotBytes(worldSize);
    let us = 0;
    for (let done = 0; done === 0 || done < bytes; done += DEFAULT_SLOT_BYTES) {
      const chunk = Math.min(bytes - done, DEFAULT_SLOT_BYTES);
      us +=
        chunk <= oneShotBytes
          ? this.#us(1, (worldSize - 1) * chunk)
          : this.#us(2, (2 * (worldSize - 1) * chunk) / worldSize);
    }
    return us;
  }

  #us(meetings: number, movedBytes: number): number {
    const { latencyUs, gbps } = this.#options;
    return meetings * latencyUs + movedBytes / (gbps * 1000);
  }
}

/**
 * A cost model of a machine. Throws OptionError `INVALID_OPTION` for a number that is none or below 0 (a speed: not above
 * 0).
 */
export function costModel(options: CostModelOptions): CostModel {
  const { latencyUs, gbps, compute, computeScale = 1 } = options;
  check("latencyUs", latencyUs, latencyUs >= 0);
  check("gbps", gbps, gbps > 0);
  check("computeScale", computeScale, computeScale >= 0);
  if (typeof compute === "object" && "weightGbps" in compute) {
    check("compute.weightGbps", compute.weightGbps, compute.weightGbps > 0);
  }
  if (typeof compute === "object" && "stepMs" in compute) check("compute.stepMs", compute.stepMs, compute.stepMs >= 0);
  return new CostModel(options);
}

/** Rounds that a payload takes when a slot travels at a time; an empty one takes one. */
function roundsOf(bytes: number): number {
  return Math.max(1, Math.ceil(bytes / DEFAULT_SLOT_BYTES));
}

function check(option: string, value: number, valid: boolean): void {
  if (Number.isFinite(value) && valid) return;
  throw invalid(option, option.toLowerCase().endsWith("gbps") ? "a number above 0" : "a number of at least 0", value);
}

function invalid(option: string, expected: string, received: number): OptionError {
  return new OptionError("INVALID_OPTION", `expected ${option} to be ${expected} but received ${received}`, {
    option,
    expected,
    received,
  });
}
