/**
 * The decoder that many families share: pre-norm blocks of grouped-query attention with rotary positions and a gated
 * SiLU MLP (Llama: Touvron et al. 2023; names as transformers' `modeling_llama.py`). A family states in a DecoderConfig
 * where it differs; its file beside this one says how config.json tells.
 */
import type { Pass } from "../collectives/collective.js";
import type { Operand } from "../core/operand.js";
import { Attention, type ForwardStep } from "../layers/attention.js";
import { type LogitsHead, ParallelLMHead, VocabParallelEmbedding } from "../layers/embedding.js";
import type { LayerContext } from "../layers/layer-context.js";
import { MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear } from "../layers/linear.js";
import type { ModelMemory } from "../layers/model-memory.js";
import { HeadNorm, RMSNorm } from "../layers/norm.js";
import { createCosSin, type RopeScaling } from "../layers/rotary.js";
import {
  type HeadRange,
  headRows,
  rangeOf,
  rangeSize,
  type Split,
  SplitAttempts,
  splitHeads,
  splitSize,
  splitVocabulary,
} from "../parallel/partition.js";
import type { Model, ModelConfig } from "./model.js";

export interface DecoderConfig extends ModelConfig {
  readonly intermediateSize: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
  readonly tiedEmbeddings: boolean;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** Query and key heads are normalized before they are rotated (`q_norm`, `k_norm`). */
  readonly queryKeyNorm: boolean;
  /** Positions a query of each layer sees, itself included; 0 for all. One entry a layer. */
  readonly slidingWindows: readonly number[];
}

/** Who owns what of a model; making it throws PartitionError. */
interface Partition {
  readonly heads: readonly HeadRange[];
  readonly intermediate: Split;
  readonly vocabulary: Split;
}

function partition(config: DecoderConfig, worldSize: number): Partition {
  const splits = new SplitAttempts();
  const heads = splits.attempt(() => splitHeads(config.heads, config.kvHeads, worldSize));
  const intermediate = splits.attempt(() => splitSize(config.intermediateSize, worldSize, "intermediate size"));
  const vocabulary = splits.attempt(() => splitVocabulary(config.vocabularySize, worldSize));
  if (heads === undefined || intermediate === undefined || vocabulary === undefined) throw splits.error();
  return { heads, intermediate, vocabulary };
}

/** Buffers that the blocks of a model share. Widths are this rank's. */
interface Activations {
  /** `[tokens, hiddenSize]`: the residual stream. */
  readonly residual: Operand;
  /** `[tokens, hiddenSize]`: what the next block adds to it. */
  readonly delta: Operand;
  /** `[tokens, hiddenSize]` */
  readonly normed: Operand;
  /** `[tokens, q | k | v]` */
  readonly qkv: Operand;
  /** `[tokens, q]` */
  readonly attended: Operand;
  /** `[tokens, gate | up]` */
  readonly gateUp: Operand;
  /** `[tokens, intermediate]` */
  readonly activated: Operand;
}

/** What blocks are built with. */
interface Parts {
  readonly context: LayerContext;
  readonly memory: ModelMemory;
  readonly config: DecoderConfig;
  readonly plan: Partition;
  /** Heads of this rank. */
  readonly own: HeadRange;
  readonly cosSin: Operand;
}

function createActivations({ config, plan, own, memory, context }: Parts): Activations {
  const tokens = memory.maxTokens;
  const q = rangeSize(own.queryHeads) * config.headSize;
  const kv = rangeSize(own.kvHeads) * config.headSize;
  const intermediate = rangeSize(rangeOf(plan.intermediate, context.rank));
  return {
    residual: memory.activation("residual", tokens, config.hiddenSize),
    delta: memory.activation("delta", tokens, config.hiddenSize),
    normed: memory.activation("normed", tokens, config.hiddenSize),
    qkv: memory.activation("qkv", tokens, q + 2 * kv),
    attended: memory.activation("attended", tokens, q),
    gateUp: memory.activation("gateUp", tokens, 2 * intermediate),
    activated: memory.activation("activated", tokens, intermediate),
  };
}

/** Query and key norms of one attention layer. */
class QueryKeyNorm {
  readonly #query: HeadNorm;
  readonly #key: HeadNorm;

  constructor({ context, config, own }: Parts, prefix: string) {
    const { headSize, rmsNormEpsilon: epsilon } = config;
    const queries = rangeSize(own.queryHeads);
    const keys = rangeSize(own.kvHeads);
    const norm = (name: string, firstHead: number, heads: number): HeadNorm =>
      new HeadNorm(context, { prefix: `${prefix}.${name}`, headSize, epsilon, firstHead, heads });
    this.#query = norm("q_norm", 0, queries);
    this.#key = norm("k_norm", queries, keys);
  }

  forward(qkv: Operand, rows: number): void {
    this.#query.forward(qkv, rows);
    this.#key.forward(qkv, rows);
  }
}

class DecoderAttention {
  readonly #qkvProj: QKVParallelLinear;
  readonly #queryKeyNorm: QueryKeyNorm | null;
  readonly #attention: Attention;
  readonly #oProj: RowParallelLinear;

  constructor(parts: Parts, layer: number) {
    const { context, memory, config, plan, own, cosSin } = parts;
    const { headSize, hiddenSize } = config;
    const prefix = `model.layers.${layer}.self_attn`;
    this.#qkvProj = new QKVParallelLinear(context, {
      prefix: `${prefix}.qkv_proj`,
      names: { q: `${prefix}.q_proj`, k: `${prefix}.k_proj`, v: `${prefix}.v_proj` },
      inputSize: hiddenSize,
      headSize,
      totalHeads: config.heads,
      totalKvHeads: config.kvHeads,
      heads: plan.heads,
      bias: config.qkvBias,
    });
    this.#queryKeyNorm = config.queryKeyNorm ? new QueryKeyNorm(parts, prefix) : null;
    const slidingWindow = config.slidingWindows[layer] ?? 0;
    this.#attention = new Attention(context, memory, { layer, headSize, heads: own, cosSin, slidingWindow });
    this.#oProj = new RowParallelLinear(context, {
      prefix: `${prefix}.o_proj`,
      inputSize: config.heads * headSize,
      outputSize: hiddenSize,
      split: headRows(plan.heads, "queryHeads", headSize),
      bias: config.outputBias,
    });
  }

  *forward({ normed, qkv, attended, delta }: Activations, step: ForwardStep): Pass {
    this.#qkvProj.forward(qkv, normed, step.tokens);
    this.#queryKeyNorm?.forward(qkv, step.tokens);
    this.#attention.forward(attended, qkv, step);
    yield* this.#oProj.forward(delta, attended, step.tokens);
  }
}

class DecoderMlp {
  readonly #context: LayerContext;
  readonly #gateUpProj: MergedColumnParallelLinear;
  readonly #downProj: RowParallelLinear;

  constructor({ context, config, plan }: Parts, layer: number) {
    const prefix = `model.layers.${layer}.mlp`;
    const { hiddenSize, intermediateSize, mlpBias: bias } = config;
    const split = plan.intermediate;
    const part = (name: string) => ({ prefix: `${prefix}.${name}`, outputSize: intermediateSize, split });
    this.#context = context;
    this.#gateUpProj = new MergedColumnParallelLinear(context, {
      prefix: `${prefix}.gate_up_proj`,
      inputSize: hiddenSize,
      parts: [part("gate_proj"), part("up_proj")],
      bias,
    });
    this.#downProj = new RowParallelLinear(context, {
      prefix: `${prefix}.down_proj`,
      inputSize: intermediateSize,
      outputSize: hiddenSize,
      split,
      bias,
    });
  }

  *forward({ normed, gateUp, activated, delta }: Activations, step: ForwardStep): Pass {
    this.#gateUpProj.forward(gateUp, normed, step.tokens);
    this.#context.kernels.siluMul(activated, gateUp, step.tokens);
    yield* this.#downProj.forward(delta, activated, step.tokens);
  }
}

class DecoderBlock {
  readonly #inputNorm: RMSNorm;
  readonly #attention: DecoderAttention;
  readonly #postAttentionNorm: RMSNorm;
  readonly #mlp: DecoderMlp;

  constructor(parts: Parts, layer: number) {
    const { context, config } = parts;
    const prefix = `model.layers.${layer}`;
    const norm = (name: string): RMSNorm =>
      new RMSNorm(context, { prefix: `${prefix}.${name}`, size: config.hiddenSize, epsilon: config.rmsNormEpsilon });
    this.#inputNorm = norm("input_layernorm");
    this.#attention = new DecoderAttention(parts, layer);
    this.#postAttentionNorm = norm("post_attention_layernorm");
    this.#mlp = new DecoderMlp(parts, layer);
  }

  /** Adds what the block before it left in `delta` to the residual stream, and leaves its own there. */
  *forward(buffers: Activations, step: ForwardStep, first: boolean): Pass {
    const { residual, delta, normed } = buffers;
    if (first) this.#inputNorm.forward(normed, residual, step.tokens);
    else this.#inputNorm.forwardWithResidual(normed, residual, delta, step.tokens);
    yield* this.#attention.forward(buffers, step);
    this.#postAttentionNorm.forwardWithResidual(normed, residual, delta, step.tokens);
    yield* this.#mlp.forward(buffers, step);
  }
}

/** One rank's part of a decoder. */
class Decoder implements Model {
  readonly vocabulary: Split;
  readonly hidden: Operand;
  readonly replicated: readonly Operand[];
  readonly #embedding: VocabParallelEmbedding;
  readonly #blocks: readonly DecoderBlock[];
  readonly #norm: RMSNorm;
  readonly #head: LogitsHead;
  readonly #buffers: Activations;

  constructor(parts: Parts) {
    const { context, config, plan } = parts;
    const { hiddenSize, vocabularySize } = config;
    const { vocabulary } = plan;
    const ends = { vocabularySize, hiddenSize, vocabulary };
    this.#embedding = new VocabParallelEmbedding(context, {
      prefix: "model.embed_tokens",
      ...ends,
      isHead: config.tiedEmbeddings,
    });
    this.#blocks = Array.from({ length: config.layers }, (_, layer) => new DecoderBlock(parts, layer));
    this.#norm = new RMSNorm(context, { prefix: "model.norm", size: hiddenSize, epsilon: config.rmsNormEpsilon });
    this.#head = config.tiedEmbeddings ? this.#embedding : new ParallelLMHead(context, { prefix: "lm_head", ...ends });
    this.#buffers = createActivations(parts);
    this.vocabulary = vocabulary;
    this.hidden = this.#buffers.normed;
    this.replicated = [this.#buffers.residual, this.#buffers.normed];
  }

  *forward(step: ForwardStep): Pass {
    const { residual, delta, normed } = this.#buffers;
    yield* this.#embedding.forward(residual, step.tokenIds, step.tokens);
    let first = true;
    for (const block of this.#blocks) {
      yield* block.forward(this.#buffers, step, first);
      first = false;
    }
    this.#norm.forwardWithResidual(normed, residual, delta, step.tokens);
  }

  computeLogits(logits: Operand, hidden: Operand, rows: number): void {
    this.#head.computeLogits(logits, hidden, rows);
  }
}

/** Builds one rank's part. Throws PartitionError when the model cannot be split into that many ranks. */
export function createDecoder(config: DecoderConfig, context: LayerContext, memory: ModelMemory): Model {
  const plan = partition(config, context.worldSize);
  const own = plan.heads[context.rank];
  if (own === undefined) throw new RangeError(`no heads planned for rank ${context.rank}`);
  const { headSize, ropeTheta: theta, ropeScaling: scaling } = config;
  const cosSin = createCosSin(memory, { headSize, theta, scaling });
  return new Decoder({ context, memory, config, plan, own, cosSin });
}
