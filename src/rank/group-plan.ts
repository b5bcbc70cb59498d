/**
 * What a tensor-parallel group would hold and exchange, found by building and loading every rank without bytes: the
 * answer is production's own, and takes no weights.
 */
import { payloadBytes } from "../collectives/payload-bytes.js";
import { withRank } from "../core/errors.js";
import { createShapeOnlyKernels } from "../kernels/shape-only.js";
import type { Registries } from "../loading/plugins.js";
import { ModelRunner } from "./model-runner.js";
import { type GroupOwnership, groupOwnership, rankOwnership } from "./ownership.js";
import type { RankOptions } from "./rank-options.js";
import { STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS, Step } from "./step.js";

/** What ranks exchange in one step. */
export interface StepExchange {
  /** Sequences that get one token each. */
  readonly sequences: number;
  readonly collectives: number;
  /** Payload that each rank contributes, in bytes, in rank order. */
  readonly bytesByRank: readonly number[];
}

export interface GroupPlan {
  readonly ownership: GroupOwnership;
  /** A decode step of one sequence, greedy. */
  readonly decode: StepExchange;
}

/** Throws what loading a rank throws before it reads a weight, naming the rank. */
export async function planGroup(options: RankOptions, registries: Registries): Promise<GroupPlan> {
  const { worldSize } = options;
  const kernels = createShapeOnlyKernels();
  const step = Step.create(options.limits);
  const ranks = [];
  let decode: StepExchange | undefined;
  for (let rank = 0; rank < worldSize; rank++) {
    try {
      const runner = await ModelRunner.load(options, rank, { registries, kernels, steps: [step] });
      ranks.push(rankOwnership(runner.loaded));
      decode ??= exchangeOf(runner, step, options);
    } catch (error) {
      throw withRank(error, rank);
    }
  }
  return {
    ownership: groupOwnership(ranks),
    decode: decode ?? { sequences: 0, collectives: 0, bytesByRank: [] },
  };
}

/** Walks one rank through a decode step. What it asks of the others says what all of them exchange. */
function exchangeOf(runner: ModelRunner, { views }: Step, { worldSize, collectivePayload }: RankOptions): StepExchange {
  for (const entry of [STEP_TOKENS, STEP_SEQUENCES, STEP_OUTPUTS]) views.header[entry] = 1;
  // Greedy, and no log-probabilities: ranks exchange maxima, not rows.
  views.logprobCounts[0] = -1;
  const bytesByRank = new Array<number>(worldSize).fill(0);
  let collectives = 0;
  for (const request of runner.runStep()) {
    collectives++;
    for (let rank = 0; rank < worldSize; rank++) {
      bytesByRank[rank] = (bytesByRank[rank] ?? 0) + payloadBytes(request, rank, collectivePayload);
    }
  }
  return { sequences: 1, collectives, bytesByRank };
}
