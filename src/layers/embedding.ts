/**
 * The two ends of a model, split over the vocabulary: each rank holds the rows of its ids. They have collectives of
 * their own: the embedding sums (all ranks but one contribute zeros); the head's logits are exchanged by whoever samples.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import type { AllReduce, Pass } from "../collectives/collective.js";
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import type { LinearWeight } from "../kernels/kernels.js";
import { rangeSize, type VocabularyRange } from "../parallel/partition.js";
import type { LayerContext } from "./layer-context.js";
import { ColumnParallelLinear } from "./linear.js";
import { narrow, type Parameter, wholeOf } from "./parameter.js";

function own(vocabulary: readonly VocabularyRange[], rank: number): VocabularyRange {
  const range = vocabulary[rank];
  if (range === undefined) throw new InternalError(`no vocabulary planned for rank ${rank}`);
  return range;
}

/** Vocabulary split over the ranks: `[rows of this rank, padding included, hiddenSize]`, padding rows zero. */
export class VocabParallelEmbedding {
  readonly vocabulary: VocabularyRange;
  readonly parameter: Parameter;
  readonly #context: LayerContext;
  readonly #vocabularySize: number;
  readonly #table: Operand;
  #request: AllReduce | undefined;

  constructor(
    context: LayerContext,
    options: {
      readonly prefix: string;
      readonly vocabularySize: number;
      readonly hiddenSize: number;
      /** One entry a rank. */
      readonly vocabulary: readonly VocabularyRange[];
    },
  ) {
    this.#context = context;
    this.#vocabularySize = options.vocabularySize;
    this.vocabulary = own(options.vocabulary, context.rank);
    const shape = [this.vocabulary.rows, options.hiddenSize];
    const spec = { name: "weight", dtype: context.dtype, shape, outputDim: 0, inputDim: 1 };
    this.parameter = context.createParameter(options.prefix, spec);
    this.#table = context.kernels.bind(this.parameter.tensor);
    const load = (source: CheckpointTensor): void => this.weightLoader(source);
    context.addTarget(this.parameter.name, { parameter: this.parameter, shardId: null, load });
  }

  /** Loads the rows of this rank's ids and zeroes the padding. The loaded weight must have exactly the vocabulary's rows. */
  weightLoader(source: CheckpointTensor): void {
    if (source.shape[0] !== this.#vocabularySize) {
      throw this.parameter.mismatch(source, `${this.#vocabularySize} rows`, `${source.shape[0] ?? "a scalar"}`);
    }
    const { ids, rows } = this.vocabulary;
    const size = rangeSize(ids);
    this.parameter.load(source, narrow(wholeOf(source.shape), 0, { offset: ids.start, size }));
    this.parameter.zero(size, rows - size);
  }

  /** `out[m]` = the embedding of `ids[m]`, on every rank. Ids must be below the vocabulary size: the engine checks. */
  *forward(out: Operand, ids: Operand, rows: number): Pass {
    const { ids: range } = this.vocabulary;
    this.#context.kernels.embedding(out, ids, this.#table, rows, range.start, rangeSize(range));
    if (this.#context.worldSize === 1) return;
    if (this.#request?.data !== out) this.#request = { kind: "allReduce", data: out, count: 0 };
    this.#request.count = rows * out.columns;
    yield this.#request;
  }
}

/** Something that turns final hidden states into the logits of this rank's ids. */
export interface LogitsHead {
  /** logits: `[rows, ids of this rank]`, padding never included; hidden: `[rows, hiddenSize]`. */
  forward(logits: Operand, hidden: Operand, rows: number): void;
}

/** An output head with a weight of its own, `lm_head`, split over the vocabulary. */
export class ParallelLMHead implements LogitsHead {
  readonly #linear: ColumnParallelLinear;

  constructor(
    context: LayerContext,
    options: {
      readonly prefix: string;
      readonly vocabularySize: number;
      readonly hiddenSize: number;
      readonly vocabulary: readonly VocabularyRange[];
      readonly bias?: boolean;
    },
  ) {
    this.#linear = new ColumnParallelLinear(context, {
      prefix: options.prefix,
      inputSize: options.hiddenSize,
      outputSize: options.vocabularySize,
      split: options.vocabulary.map(({ ids }) => ids),
      bias: options.bias ?? false,
    });
  }

  forward(logits: Operand, hidden: Operand, rows: number): void {
    this.#linear.forward(logits, hidden, rows);
  }
}

/** An output head that uses the embedding's rows and loads nothing. */
export class TiedLMHead implements LogitsHead {
  readonly #context: LayerContext;
  readonly #weight: LinearWeight;

  constructor(context: LayerContext, embedding: VocabParallelEmbedding) {
    this.#context = context;
    const { tensor } = embedding.parameter;
    const rows = rangeSize(embedding.vocabulary.ids);
    // The rows of real ids only: the logit of a padding row is 0, which would win among negative ones.
    const matrix = context.kernels.bind({ ...tensor, shape: [rows, ...tensor.shape.slice(1)] });
    this.#weight = { format: "dense", matrix };
  }

  forward(logits: Operand, hidden: Operand, rows: number): void {
    this.#context.kernels.linear(logits, hidden, this.#weight, null, rows);
  }
}
