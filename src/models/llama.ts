/**
 * The Llama family (Touvron et al. 2023; config and names as transformers' `modeling_llama.py`): pre-norm blocks of
 * grouped-query attention with rotary positions and a gated SiLU MLP. SmolLM2 and many others are of this shape.
 */
import type { Pass } from "../collectives/collective.js";
import type { JsonObject } from "../core/json.js";
import type { Operand } from "../core/operand.js";
import { Attention, type ForwardStep } from "../layers/attention.js";
import { type LogitsHead, ParallelLMHead, TiedLMHead, VocabParallelEmbedding } from "../layers/embedding.js";
import type { LayerContext } from "../layers/layer-context.js";
import { MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear } from "../layers/linear.js";
import type { ModelMemory } from "../layers/model-memory.js";
import { RMSNorm } from "../layers/norm.js";
import { createCosSin, type RopeScaling } from "../layers/rotary.js";
import {
  type HeadRange,
  rangeSize,
  type Split,
  scaleSplit,
  splitHeads,
  splitSize,
  splitVocabulary,
  type VocabularyRange,
} from "../parallel/partition.js";
import { ConfigReader } from "./config-reader.js";
import type { Model, ModelConfig, ModelFamily } from "./model.js";
import { parseRope } from "./rope-config.js";

export interface LlamaConfig extends ModelConfig {
  readonly intermediateSize: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
  readonly tiedEmbeddings: boolean;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
}

/** Reads config.json. Throws CheckpointError `INVALID_CONFIG` or UnsupportedError. */
export function parseLlamaConfig(json: JsonObject): LlamaConfig {
  const config = new ConfigReader(json);
  config.require("hidden_act", "silu");
  config.require("pretraining_tp", 1);
  const hiddenSize = config.size("hidden_size");
  const heads = config.size("num_attention_heads");
  const headSize = config.has("head_dim") ? config.size("head_dim") : hiddenSize / heads;
  if (!Number.isInteger(headSize) || headSize % 2 !== 0) {
    throw config.invalid("head_dim", "an even whole number (hidden_size / num_attention_heads if absent)", headSize);
  }
  const { theta, scaling } = parseRope(config);
  return {
    architecture: "LlamaForCausalLM",
    hiddenSize,
    layers: config.size("num_hidden_layers"),
    heads,
    kvHeads: config.size("num_key_value_heads", heads),
    headSize,
    vocabularySize: config.size("vocab_size"),
    maxPositions: config.size("max_position_embeddings", 2048),
    dtype: config.dtype(),
    endOfSequenceIds: config.tokenIds("eos_token_id"),
    intermediateSize: config.size("intermediate_size"),
    rmsNormEpsilon: config.positive("rms_norm_eps", 1e-6),
    ropeTheta: theta,
    ropeScaling: scaling,
    tiedEmbeddings: config.boolean("tie_word_embeddings", false),
    attentionBias: config.boolean("attention_bias", false),
    mlpBias: config.boolean("mlp_bias", false),
  };
}

/** Who owns what of a Llama model; throws PartitionError. */
interface LlamaPartition {
  readonly heads: readonly HeadRange[];
  readonly intermediate: Split;
  readonly vocabulary: readonly VocabularyRange[];
}

function partition(config: LlamaConfig, worldSize: number): LlamaPartition {
  return {
    heads: splitHeads(config.heads, config.kvHeads, worldSize),
    intermediate: splitSize(config.intermediateSize, worldSize, "intermediate size"),
    vocabulary: splitVocabulary(config.vocabularySize, worldSize),
  };
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

function createActivations(
  config: LlamaConfig,
  own: HeadRange,
  intermediate: number,
  memory: ModelMemory,
): Activations {
  const tokens = memory.maxTokens;
  const q = rangeSize(own.queryHeads) * config.headSize;
  const kv = rangeSize(own.kvHeads) * config.headSize;
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

/** What a block is built with. */
interface Parts {
  readonly context: LayerContext;
  readonly memory: ModelMemory;
  readonly config: LlamaConfig;
  readonly plan: LlamaPartition;
  readonly own: HeadRange;
  readonly cosSin: Operand;
}

class LlamaAttention {
  readonly #qkvProj: QKVParallelLinear;
  readonly #attention: Attention;
  readonly #oProj: RowParallelLinear;

  constructor({ context, memory, config, plan, own, cosSin }: Parts, layer: number) {
    const prefix = `model.layers.${layer}.self_attn`;
    this.#qkvProj = new QKVParallelLinear(context, {
      prefix: `${prefix}.qkv_proj`,
      names: { q: `${prefix}.q_proj`, k: `${prefix}.k_proj`, v: `${prefix}.v_proj` },
      inputSize: config.hiddenSize,
      headSize: config.headSize,
      totalHeads: config.heads,
      totalKvHeads: config.kvHeads,
      heads: plan.heads,
      bias: config.attentionBias,
    });
    this.#attention = new Attention(context, memory, { layer, headSize: config.headSize, heads: own, cosSin });
    const queryHeads = plan.heads.map((heads) => heads.queryHeads);
    this.#oProj = new RowParallelLinear(context, {
      prefix: `${prefix}.o_proj`,
      inputSize: config.heads * config.headSize,
      outputSize: config.hiddenSize,
      split: scaleSplit(queryHeads, config.headSize),
      bias: config.attentionBias,
    });
  }

  *forward({ normed, qkv, attended, delta }: Activations, step: ForwardStep): Pass {
    this.#qkvProj.forward(qkv, normed, step.tokens);
    this.#attention.forward(attended, qkv, step);
    yield* this.#oProj.forward(delta, attended, step.tokens);
  }
}

class LlamaMlp {
  readonly #kernels: LayerContext["kernels"];
  readonly #gateUpProj: MergedColumnParallelLinear;
  readonly #downProj: RowParallelLinear;

  constructor({ context, config, plan }: Parts, layer: number) {
    const prefix = `model.layers.${layer}.mlp`;
    const { hiddenSize, intermediateSize, mlpBias: bias } = config;
    const part = (name: string) => {
      return { prefix: `${prefix}.${name}`, outputSize: intermediateSize, split: plan.intermediate };
    };
    this.#kernels = context.kernels;
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
      split: plan.intermediate,
      bias,
    });
  }

  *forward({ normed, gateUp, activated, delta }: Activations, step: ForwardStep): Pass {
    this.#gateUpProj.forward(gateUp, normed, step.tokens);
    this.#kernels.siluMul(activated, gateUp, step.tokens);
    yield* this.#downProj.forward(delta, activated, step.tokens);
  }
}

class LlamaBlock {
  readonly #inputNorm: RMSNorm;
  readonly #attention: LlamaAttention;
  readonly #postAttentionNorm: RMSNorm;
  readonly #mlp: LlamaMlp;

  constructor(parts: Parts, layer: number) {
    const { context, config } = parts;
    const prefix = `model.layers.${layer}`;
    const norm = (name: string): RMSNorm =>
      new RMSNorm(context, { prefix: `${prefix}.${name}`, size: config.hiddenSize, epsilon: config.rmsNormEpsilon });
    this.#inputNorm = norm("input_layernorm");
    this.#attention = new LlamaAttention(parts, layer);
    this.#postAttentionNorm = norm("post_attention_layernorm");
    this.#mlp = new LlamaMlp(parts, layer);
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

/** One rank's part of a Llama model. */
class LlamaModel implements Model {
  readonly vocabulary: readonly VocabularyRange[];
  readonly hidden: Operand;
  readonly #embedding: VocabParallelEmbedding;
  readonly #blocks: readonly LlamaBlock[];
  readonly #norm: RMSNorm;
  readonly #head: LogitsHead;
  readonly #buffers: Activations;

  constructor(config: LlamaConfig, context: LayerContext, memory: ModelMemory) {
    const plan = partition(config, context.worldSize);
    const own = plan.heads[context.rank];
    const intermediate = plan.intermediate[context.rank];
    if (own === undefined || intermediate === undefined) throw new RangeError(`no plan for rank ${context.rank}`);
    const cosSin = createCosSin(memory, {
      headSize: config.headSize,
      theta: config.ropeTheta,
      scaling: config.ropeScaling,
    });
    const ends = {
      vocabularySize: config.vocabularySize,
      hiddenSize: config.hiddenSize,
      vocabulary: plan.vocabulary,
    };
    const parts: Parts = { context, memory, config, plan, own, cosSin };
    this.#embedding = new VocabParallelEmbedding(context, { prefix: "model.embed_tokens", ...ends });
    this.#blocks = Array.from({ length: config.layers }, (_, layer) => new LlamaBlock(parts, layer));
    this.#norm = new RMSNorm(context, {
      prefix: "model.norm",
      size: config.hiddenSize,
      epsilon: config.rmsNormEpsilon,
    });
    this.#head = config.tiedEmbeddings
      ? new TiedLMHead(context, this.#embedding)
      : new ParallelLMHead(context, { prefix: "lm_head", ...ends });
    this.#buffers = createActivations(config, own, rangeSize(intermediate), memory);
    this.vocabulary = plan.vocabulary;
    this.hidden = this.#buffers.normed;
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
    this.#head.forward(logits, hidden, rows);
  }
}

const IGNORED = ["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];

export const llama: ModelFamily = {
  architectures: ["LlamaForCausalLM"],
  parseConfig: parseLlamaConfig,
  create(json, context, memory): Model {
    return new LlamaModel(parseLlamaConfig(json), context, memory);
  },
  ignores(name, json): boolean {
    if (IGNORED.some((suffix) => name.endsWith(`.${suffix}`))) return true;
    return name.startsWith("lm_head.") && parseLlamaConfig(json).tiedEmbeddings;
  },
};
