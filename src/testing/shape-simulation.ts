/**
 * A tensor-parallel group without bytes: layers are built and partitioned, every weight loader computes its extents,
 * parameters keep account, and steps yield their collectives, at any size and on any machine. No weight is read or stored.
 */
import { OptionError } from "../core/errors.js";
import type { ModelConfig } from "../models/model.js";
import type { GroupOwnership } from "../rank/ownership.js";
import { STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS } from "../rank/step.js";
import type { CollectiveTrace, StepRecord } from "./collective-trace.js";
import type { IndexerCall, OffsetComputation } from "./placement-recorder.js";
import type { Preparation } from "./preparation.js";
import type { SimulatedRank } from "./simulated-rank.js";
import { WatchedRanks, type WatchedRanksOptions } from "./watched-ranks.js";

/** The size of a step. */
export interface StepSize {
  /** Default 1: a decode step of one sequence. */
  readonly tokens?: number | undefined;
  /** Sequences the tokens belong to, each of which wants one greedy token. Default 1. */
  readonly sequences?: number | undefined;
}

export class ShapeSimulation {
  readonly worldSize: number;
  readonly config: ModelConfig;
  /** In rank order. Their parameters have shapes, slices and no bytes. */
  readonly ranks: readonly SimulatedRank[];
  readonly #group: WatchedRanks;

  private constructor(group: WatchedRanks) {
    this.worldSize = group.executor.worldSize;
    this.config = group.executor.config;
    this.ranks = group.ranks;
    this.#group = group;
  }

  /** Use `simulate`. */
  static async load(preparation: Preparation, options: Omit<WatchedRanksOptions, "kernels">): Promise<ShapeSimulation> {
    return new ShapeSimulation(await WatchedRanks.load(preparation, { ...options, kernels: "shape-only" }));
  }

  /** Who would hold which part of which checkpoint tensor, and how many bytes that would take. */
  get ownership(): GroupOwnership {
    return this.#group.ownership;
  }

  /** Questions to shard indexers, and their answers, in order. */
  get indexerCalls(): readonly IndexerCall[] {
    return this.#group.placements.indexerCalls;
  }

  /** Every time that the original offsets of a layer were computed. */
  get offsetComputations(): readonly OffsetComputation[] {
    return this.#group.placements.offsetComputations;
  }

  /** Collectives of every step so far. */
  get trace(): CollectiveTrace {
    return this.#group.trace;
  }

  /** Runs a step of so many tokens: nothing is computed, and its collectives are recorded. Throws OptionError `INVALID_OPTION`. */
  step({ tokens = 1, sequences = 1 }: StepSize = {}): StepRecord {
    const { step } = this.#group.executor;
    check("tokens", tokens, step.limits.maxTokens);
    check("sequences", sequences, Math.min(tokens, step.limits.maxSequences));
    const { views } = step;
    views.header[STEP_TOKENS] = tokens;
    views.header[STEP_SEQUENCES] = sequences;
    views.header[STEP_OUTPUTS] = sequences;
    // Greedy, and no log-probabilities: ranks exchange maxima, not rows.
    views.logprobCounts.fill(-1, 0, sequences);
    this.#group.executor.runStep();
    const record = this.#group.lastStep;
    if (record === undefined) throw new RangeError("a step left no record");
    return record;
  }

  /** There is no memory to give back; here so that either simulation can be closed. */
  async close(): Promise<void> {
    this.#group.release();
  }
}

function check(option: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 1 && value <= most) return;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be a whole number from 1 to ${most} but received ${value}`,
    { option, expected: `1..${most}`, received: value },
  );
}
