/**
 * The two ends of a model, split over the vocabulary: each rank holds the rows of its ids. They have collectives of
 * their own: the embedding sums (all ranks but one contribute zeros); the head's logits are exchanged by whoever samples.
 * No rank stores padding rows, so no padding can ever be an answer.
 */
import type { AllReduce, Pass } from "../collectives/collective.js";
import { PluginError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { type Range, rangeOf, rangeSize, type Split } from "../parallel/partition.js";
import type { LayerContext } from "./layer-context.js";
import { ColumnParallelLinear, LinearBase } from "./linear.js";

/** A vocabulary, and who holds which ids. */
export interface VocabularyOptions {
  readonly prefix: string;
  readonly vocabularySize: number;
  readonly hiddenSize: number;
  readonly vocabulary: Split;
}

/** Turns final hidden states into the logits of this rank's ids. */
export interface LogitsHead {
  /** logits: `[rows, ids of this rank]`; hidden: `[rows, hiddenSize]`. */
  computeLogits(logits: Operand, hidden: Operand, rows: number): void;
}

/** `[ids of this rank, hiddenSize]`; with tied weights, the output head as well. */
export class VocabParallelEmbedding extends LinearBase implements LogitsHead {
  readonly #ids: Range;
  #request: AllReduce | undefined;

  /** `isHead`: with tied weights, so that a quantization format knows what else the rows are for. */
  constructor(context: LayerContext, options: VocabularyOptions & { readonly isHead?: boolean }) {
    const { prefix, vocabularySize, hiddenSize, vocabulary, isHead = false } = options;
    const ids = rangeOf(vocabulary, context.rank);
    super(
      context,
      {
        prefix,
        kind: "embedding",
        isHead,
        inputSize: hiddenSize,
        inputs: { start: 0, end: hiddenSize },
        parts: [{ prefix, shardId: null, outputSize: vocabularySize, rows: ids, split: vocabulary, localOffset: 0 }],
        outputSizePerPartition: rangeSize(ids),
        rank: context.rank,
        worldSize: context.worldSize,
        dtype: context.dtype,
      },
      false,
    );
    this.#ids = ids;
  }

  /** `out[m]` = the embedding of `ids[m]`, on every rank. Ids must be below the vocabulary size: the engine checks. */
  *forward(out: Operand, ids: Operand, rows: number): Pass {
    if (this.method.embed === undefined) {
      throw new PluginError(
        "INVALID_LINEAR_METHOD",
        `${this.layer.prefix}: expected a linear method that can look rows up but ${this.context.quantization.name}'s has no embed()`,
        { plugin: this.context.quantization.name, layer: this.layer.prefix },
      );
    }
    this.method.embed(this.context.kernels, out, ids, rows, this.#ids.start);
    if (this.layer.worldSize === 1) return;
    if (this.#request?.data !== out)
      this.#request = { kind: "allReduce", site: this.layer.prefix, data: out, count: 0 };
    this.#request.count = rows * out.columns;
    yield this.#request;
  }

  computeLogits(logits: Operand, hidden: Operand, rows: number): void {
    this.apply(logits, hidden, rows);
  }
}

/** An output head with a weight of its own. */
export class ParallelLMHead implements LogitsHead {
  readonly #linear: ColumnParallelLinear;

  constructor(context: LayerContext, options: VocabularyOptions & { readonly bias?: boolean }) {
    this.#linear = new ColumnParallelLinear(context, {
      prefix: options.prefix,
      inputSize: options.hiddenSize,
      outputSize: options.vocabularySize,
      split: options.vocabulary,
      bias: options.bias ?? false,
      isHead: true,
    });
  }

  computeLogits(logits: Operand, hidden: Operand, rows: number): void {
    this.#linear.forward(logits, hidden, rows);
  }
}
