/** Starts coordinators over the threads of fake-rank.ts. */
import {
  type Coordinator,
  type CoordinatorOptions,
  type CoordinatorTimeouts,
  startCoordinator,
} from "../../src/coordinator/coordinator.js";
import { createLogger } from "../../src/core/logger.js";
import type { ModelConfig } from "../../src/models/model.js";
import { stepOf } from "../../src/rank/step.js";
import { FAULT_REACHED, type Fault } from "./fault.js";

const config: ModelConfig = {
  architecture: "FakeForCausalLM",
  hiddenSize: 64,
  layers: 1,
  heads: 4,
  kvHeads: 4,
  headSize: 16,
  vocabularySize: 128,
  maxPositions: 64,
  dtype: "f32",
  endOfSequenceIds: [],
};

/** Deadlines short enough to be met in a test, long enough not to be met by accident. */
const timeouts: CoordinatorTimeouts = {
  startTimeoutMs: 60_000,
  stepTimeoutMs: 60_000,
  collectiveTimeoutMs: 60_000,
  closeTimeoutMs: 10_000,
};

export interface FakeRanksOptions
  extends Pick<CoordinatorOptions, "onProgress" | "signal" | "thread" | "stepsInFlight"> {
  readonly worldSize?: number;
  readonly faults?: readonly Fault[];
  readonly timeouts?: Partial<CoordinatorTimeouts>;
}

export function startFakeRanks(options: FakeRanksOptions = {}): Promise<Coordinator> {
  const { worldSize = 2, faults = [], ...rest } = options;
  return startCoordinator({
    config,
    ranks: {
      path: JSON.stringify(faults),
      loadFormat: "fake",
      description: { config: {}, generationConfig: null, tokenizer: null, chatTemplate: null },
      worldSize,
      dtype: "f32",
      kvCacheDtype: "f32",
      activations: "f32",
      quantization: null,
      blockSize: 16,
      blocks: 4,
      maxModelLength: 64,
      limits: { maxTokens: 16, maxSequences: 2, maxBlocksPerSequence: 4, maxOutputs: 2, maxLogprobs: 0 },
    },
    thread: { url: new URL("./fake-rank.js", import.meta.url) },
    logger: createLogger("silent"),
    ...rest,
    timeouts: { ...timeouts, ...options.timeouts },
  });
}

/** Runs step number `step` and returns what rank 0 answered. */
export async function runFakeStep(coordinator: Coordinator, step: number): Promise<number | undefined> {
  const { tokenIds, resultIds } = stepOf(coordinator.steps, step - 1).views;
  tokenIds[0] = step;
  await coordinator.execute();
  return resultIds[0];
}

/** Resolves when a rank is inside the fault of the step in flight. */
export async function faultReached(coordinator: Coordinator): Promise<void> {
  const { resultIds } = coordinator.steps[0].views;
  while (Atomics.load(resultIds, FAULT_REACHED) === 0) await new Promise((resolve) => setImmediate(resolve));
}
