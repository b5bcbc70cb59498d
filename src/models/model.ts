/** What every model family provides, and what the rank's runner asks of it. */
import type { Pass } from "../collectives/collective.js";
import type { FloatDType } from "../core/dtype.js";
import type { CheckpointError, UnsupportedError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import type { Operand } from "../core/operand.js";

import type { ForwardStep } from "../layers/attention.js";
import type { LayerContext } from "../layers/layer-context.js";
import type { ModelMemory } from "../layers/model-memory.js";
import type { Split } from "../parallel/partition.js";

/** Facts about a model that the rest of the house needs; families add their own. */
export interface ModelConfig {
  readonly architecture: string;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly vocabularySize: number;
  /** Positions the model was made for. */
  readonly maxPositions: number;
  /** dtype its weights are meant to be used in. */
  readonly dtype: FloatDType;
  /** Ids that end an answer. */
  readonly endOfSequenceIds: readonly number[];
}

/** One rank's part of a model. */
export interface Model {
  /** The vocabulary ids whose logits each rank computes. */
  readonly vocabulary: Split;
  /** Final hidden states, `[maxTokens, hiddenSize]`, the same on every rank. */
  readonly hidden: Operand;
  /**
   * Activations, `[maxTokens, ..]`, that hold the same on every rank whenever the pass is at a collective; what was not
   * written since stands as it was. For checks: nothing is computed from this list.
   */
  readonly replicated: readonly Operand[];
  /** Computes `hidden` for the tokens of the step. */
  forward(step: ForwardStep): Pass;
  /** Logits of this rank's ids: `logits[i]` is of the hidden state in row i of `hidden`. */
  computeLogits(logits: Operand, hidden: Operand, rows: number): void;
}

/** A family of models: reads its config.json and builds one rank's part. */
export interface ModelFamily {
  /** Names in config.json's `architectures`. */
  readonly architectures: readonly string[];
  /**
   * Checks everything that can be checked before a weight is read. Throws CheckpointError or UnsupportedError for the first
   * thing that is wrong, or tells `complain` of each; what it returns is then of use only if there was none.
   */
  parseConfig(json: JsonObject, complain?: (error: CheckpointError | UnsupportedError) => void): ModelConfig;
  /** Throws PartitionError when the model cannot be split. Weights are declared in the context, not loaded. */
  create(json: JsonObject, context: LayerContext, memory: ModelMemory): Model;
  /** Checkpoint tensors that are known and not used, and why: kept out of the surplus check. */
  ignores(name: string, json: JsonObject): boolean;
  /** Of an ignored tensor, the one that is used in its place and should hold the same; null where none is. */
  repeats(name: string, json: JsonObject): string | null;
}
