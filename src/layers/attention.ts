/**
 * Attention over a paged KV cache. The layer owns the cache of its KV heads and does what lies between the query-key-
 * value projection and the output projection: rotate, store, attend. It never meets other ranks: every query head of a
 * rank reads KV heads of the same rank.
 */
import type { Operand } from "../core/operand.js";
import type { AttentionBatch, AttentionShape, Kernels, KvCache } from "../kernels/kernels.js";
import { type HeadRange, rangeSize } from "../parallel/partition.js";
import type { LayerContext } from "./layer-context.js";
import type { ModelMemory } from "./model-memory.js";

/** One step as the model sees it. The object is reused; only the numbers change. */
export interface ForwardStep {
  tokens: number;
  sequences: number;
  readonly tokenIds: Operand;
  readonly positions: Operand;
  readonly slots: Operand;
  readonly batch: AttentionBatch;
}

export interface AttentionOptions {
  /** Index of the layer, which has a KV cache of its own. */
  readonly layer: number;
  readonly headSize: number;
  /** Heads of this rank. */
  readonly heads: HeadRange;
  /** Table made by `createCosSin`. */
  readonly cosSin: Operand;
  /** Multiplied with the scores; 1 / sqrt(headSize) by default. */
  readonly scale?: number;
  /** Positions a query sees, itself included; all by default. */
  readonly slidingWindow?: number;
}

export class Attention {
  readonly #kernels: Kernels;
  readonly #cache: KvCache;
  readonly #cosSin: Operand;
  readonly #shape: AttentionShape;

  constructor(context: LayerContext, memory: ModelMemory, options: AttentionOptions) {
    const { layer, headSize, heads } = options;
    this.#kernels = context.kernels;
    this.#cosSin = options.cosSin;
    const kvHeads = rangeSize(heads.kvHeads);
    this.#cache = memory.kvCache(layer, kvHeads, headSize);
    this.#shape = {
      heads: rangeSize(heads.queryHeads),
      kvHeads,
      kvHeadOf: memory.integers(`layers.${layer}.kvHeadOf`, heads.kvHeadOf),
      headSize,
      scale: options.scale ?? 1 / Math.sqrt(headSize),
      slidingWindow: options.slidingWindow ?? 0,
      softCap: 0,
    };
  }

  /** out: `[rows, heads * headSize]`; qkv: `[rows, q | k | v]` of this rank, rotated in place. */
  forward(out: Operand, qkv: Operand, step: ForwardStep): void {
    const { heads, kvHeads, headSize } = this.#shape;
    const keyColumn = heads * headSize;
    const valueColumn = keyColumn + kvHeads * headSize;
    // Query and key heads lie side by side, so one call rotates both.
    this.#kernels.rope(qkv, step.positions, this.#cosSin, step.tokens, 0, heads + kvHeads, headSize);
    this.#kernels.writeKv(this.#cache, qkv, step.slots, step.tokens, keyColumn, valueColumn);
    this.#kernels.attention(out, qkv, this.#cache, step.batch, step.sequences, this.#shape);
  }
}
