/** Attention over a paged cache with made-up keys and values: the operands of one call, and what it has to read and compute. */
import type { Operand } from "../../src/core/operand.js";
import type { AttentionBatch, AttentionShape, Kernels, KvCache } from "../../src/kernels/kernels.js";
import { type KvCacheDType, kvPositionBytes } from "../../src/kernels/kv-cache-dtype.js";
import type { Random } from "../models/weight-types.js";
import { codes, floats, integers, zeros } from "./random-tensors.js";

/** Extents of an attention layer and of its call, for one sequence. */
export interface AttentionExtents {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  /** Positions in the cache, those of the queries included. */
  readonly context: number;
  /** Queries at its end. */
  readonly queries: number;
  readonly dtype: KvCacheDType;
  /** Caches that calls take in turns, as layers do. */
  readonly layers: number;
}

export interface AttentionCase {
  /** Attention of layer `index % layers`. */
  readonly call: (index: number) => void;
  readonly out: Operand;
  /** Keys and values of one layer up to the last query. */
  readonly bytes: number;
  /** Products of queries with keys and of weights with values, two operations each. */
  readonly flops: number;
  readonly release: () => void;
}

const BLOCK_SIZE = 16;

export function makeAttention(kernels: Kernels, extents: AttentionExtents, random: Random): AttentionCase {
  const { heads, kvHeads, headSize, context, queries, dtype, layers } = extents;
  const blocks = Math.ceil(context / BLOCK_SIZE);
  const cacheShape = [blocks, kvHeads, BLOCK_SIZE, headSize];
  const bound: Operand[] = [];
  const bind = (tensor: Parameters<Kernels["bind"]>[0]): Operand => {
    const operand = kernels.bind(tensor);
    bound.push(operand);
    return operand;
  };
  const caches = Array.from({ length: layers }, (): KvCache => {
    const extents = { kvHeads, headSize, blockSize: BLOCK_SIZE };
    if (dtype !== "int8") {
      const [keys, values] = [floats(dtype, cacheShape, 1, random), floats(dtype, cacheShape, 1, random)];
      return { keys: bind(keys), values: bind(values), scales: null, ...extents };
    }
    const [keys, values] = [codes("i8", cacheShape, random), codes("i8", cacheShape, random)];
    const scales = floats("f32", [blocks, kvHeads, 2, BLOCK_SIZE], 1 / 127, random);
    return { keys: bind(keys), values: bind(values), scales: bind(scales), ...extents };
  });
  const q = bind(floats("f32", [queries, heads * headSize], 1, random));
  const out = bind(zeros("f32", [queries, heads * headSize]));
  const batch: AttentionBatch = {
    queryStarts: bind(integers([2], [0, queries])),
    contextLengths: bind(integers([1], [context])),
    blockTables: bind(integers([1, blocks], shuffled(blocks, random))),
  };
  const group = heads / kvHeads;
  const kvHeadOf = bind(
    integers(
      [heads],
      Array.from({ length: heads }, (_, head) => Math.floor(head / group)),
    ),
  );
  const scale = 1 / Math.sqrt(headSize);
  const shape: AttentionShape = { heads, kvHeads, kvHeadOf, headSize, scale, slidingWindow: 0, softCap: 0 };
  // Query i sees all positions up to its own.
  const seen = queries * context - (queries * (queries - 1)) / 2;
  return {
    call: (index) => {
      const cache = caches[index % layers];
      if (cache !== undefined) kernels.attention(out, q, cache, batch, 1, shape);
    },
    out,
    bytes: context * kvHeads * kvPositionBytes(dtype, headSize),
    flops: 4 * heads * headSize * seen,
    release: () => {
      for (const operand of bound) kernels.release(operand);
    },
  };
}

/** Blocks of a cache lie anywhere. */
function shuffled(count: number, random: Random): number[] {
  const order = Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i--) {
    const other = Math.floor(random() * (i + 1));
    [order[i], order[other]] = [order[other] ?? 0, order[i] ?? 0];
  }
  return order;
}
