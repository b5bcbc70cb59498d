/**
 * The interface of the compute kernels. Two implementations: `native.ts` (the C++ addon, chosen at run time by CPU and
 * OS state) and `reference.ts` (plain TypeScript, the oracle every native kernel is tested against).
 *
 * Conventions. Activations are f32, row-major `[capacity, width]`; a call uses the first `rows` rows. `width` is the
 * last extent of the operand's shape. All sums accumulate in f32 or wider. Kernels know no rank, no layer and no
 * storage format: they know execution formats (here: dense f32, bf16 or f16 weights).
 */
import type { Operand } from "../core/operand.js";
import type { Tensor } from "../core/tensor.js";

/**
 * A weight matrix `[outputs, inputs]` in one of the execution formats. All arithmetic below is in f32 with one rounding
 * an operation: these are the values a weight *has*, and kernels of the exact level multiply with.
 */
export type LinearWeight = DenseWeight | Code4Weight | Int8Weight | PreparedWeight;

/** f32, bf16 or f16 `[outputs, inputs]`. */
export interface DenseWeight {
  readonly format: "dense";
  readonly matrix: Operand;
  /** The level it is multiplied with at, where `prepareLinear` chose another one than f32. */
  readonly activations?: "bf16";
}

/** 4-bit codes: element c of a row is `codebook[code] * scales[c / blockSize] + minimums[c / blockSize]`. */
export interface Code4Weight {
  readonly format: "code4";
  /** u8 `[outputs, inputs / 2]`: input 2i in the high half of byte i, input 2i + 1 in the low half. */
  readonly codes: Operand;
  /** f32 `[16]` */
  readonly codebook: Operand;
  /** f32 or f16 `[outputs, inputs / blockSize]`; f16 is widened, which is exact. */
  readonly scales: Operand;
  /** As the scales; null for none. */
  readonly minimums: Operand | null;
  /** Inputs a scale holds for: a multiple of 16 that divides the inputs. */
  readonly blockSize: number;
  /** The codes lie in groups of rows (checkpoint/row-groups.ts): it is for `prepareLinear` and nothing else. */
  readonly inGroups?: boolean;
}

/** 8-bit codes: element c of a row is `(code * scales[c / blockSize]) * multiplier + minimums[c / blockSize]`. */
export interface Int8Weight {
  readonly format: "int8";
  /** i8 `[outputs, inputs]` */
  readonly codes: Operand;
  /** f32 or f16 `[outputs, inputs / blockSize]`; f16 is widened, which is exact. */
  readonly scales: Operand;
  /** As the scales; null for none. */
  readonly minimums: Operand | null;
  /** Inputs a scale holds for: all, or a multiple of 16 that divides them. */
  readonly blockSize: number;
  /** As of 4-bit codes. */
  readonly inGroups?: boolean;
  /** A constant of the format, 1 for most; bitsandbytes' 1/127. */
  readonly multiplier: number;
}

/** What is known of a weight in blocks before it is there. */
export type BlocksOfCodes = Pick<Code4Weight | Int8Weight, "format" | "blockSize">;

/**
 * A weight that `prepareLinear` took over: its values are those of what it was made of, whose operands' bytes may be in
 * an order of the kernels' own now. Rows of it are read with `embedding`.
 */
export interface PreparedWeight {
  readonly format: "prepared";
  readonly source: Code4Weight | Int8Weight;
  /** What the kernels know it by. */
  readonly handle: number;
}

/** Which heads an attention call works on; fixed for a layer. */
export interface AttentionShape {
  /** Query heads of this rank. */
  readonly heads: number;
  /** KV heads of this rank. */
  readonly kvHeads: number;
  /** i32 `[heads]`: the local KV head that each query head reads; not decreasing. */
  readonly kvHeadOf: Operand;
  readonly headSize: number;
  /** Multiplied with q . k before the softmax. */
  readonly scale: number;
  /** A query sees this many positions, itself included; 0 for all before it. */
  readonly slidingWindow: number;
  /** Scores become `softCap * tanh(score / softCap)`; 0 for none. */
  readonly softCap: number;
}

/** The paged KV cache of one layer, in f32, bf16 or f16, or in codes of i8 (kv-cache-dtype.ts). */
export interface KvCache {
  /** `[blocks, kvHeads, headSize, blockSize]`: neighbouring positions side by side, as a query meets them. */
  readonly keys: Operand;
  /** `[blocks, kvHeads, blockSize, headSize]` */
  readonly values: Operand;
  /**
   * f32 `[blocks, kvHeads, 2, blockSize]`, the scales of keys, then of values, where these are i8: element d of a key is its
   * code times the key's scale. Null otherwise.
   */
  readonly scales: Operand | null;
  readonly kvHeads: number;
  readonly headSize: number;
  /** Tokens a block holds. */
  readonly blockSize: number;
}

/** Where the queries of a step belong. Operands are i32. */
export interface AttentionBatch {
  /** `[capacity + 1]`: the queries of sequence s are rows `[queryStarts[s], queryStarts[s + 1])`. */
  readonly queryStarts: Operand;
  /** `[capacity]`: positions of sequence s in the cache, those written in this step included. */
  readonly contextLengths: Operand;
  /** `[capacity, maxBlocks]`: block number of position p of sequence s is `blockTables[s][p // blockSize]`. */
  readonly blockTables: Operand;
}

/** Calls of kernels that were written down while they were made. */
export interface Recorded<Result> {
  /** What came of making them. */
  readonly result: Result;
  /**
   * Makes them once more: the same ones, in the same order, with the same operands and numbers, on what the operands hold by
   * then. Throws as the first call that fails does. Returns 0, or `256 * n + status` where request n of the collectives among
   * them ended with that status: Collective.replayed takes it. `micros`, two elements a call, becomes what each took in
   * microseconds, and how much of that was spent waiting for other ranks.
   */
  readonly replay: (micros?: Float64Array) => number;
  /** Forgets the calls, which nothing else does. Making them afterwards throws. */
  readonly release: () => void;
}

export interface Kernels {
  /** "shape-only" computes nothing: its operands may be virtual tensors (shape-only.ts). */
  readonly backend: "native" | "reference" | "shape-only";
  /** "avx512bf16", "avx512vnni", "avx512", "avx2", "neoni8mm", "neondotprod", "neon", "portable", "typescript", or "none". */
  readonly isa: string;

  /** Makes a tensor usable by kernels; validates dtype, alignment and extent once. */
  bind(tensor: Tensor): Operand;
  /** Forgets an operand. Using it afterwards throws. */
  release(operand: Operand): void;

  /**
   * Takes a weight over for `linear` and `embedding`, once, when it is loaded: the kernels may keep its codes and scales in
   * an order of their own, in the same bytes, and multiply at the level of activations they were made with
   * (activation-levels.ts). The caller uses what is returned from then on, and reads the weight's operands no more.
   * Returns the weight as it is where there is nothing to prepare: the level f32, dense weights in f32 or f16, blocks or
   * codebooks that only the exact kernels take.
   */
  prepareLinear(weight: LinearWeight): LinearWeight;
  /**
   * Whether `prepareLinear` takes a weight over whose codes lie in groups of rows already (checkpoint/row-groups.ts), with scales
   * and minimums in the order of rows.
   */
  takesRowGroups(weight: BlocksOfCodes): boolean;
  /** Forgets a weight that `prepareLinear` returned. Using it afterwards throws. Its operands are released by themselves. */
  releaseLinear(weight: LinearWeight): void;

  /**
   * Calls `make` and writes down what calls of these kernels it makes, except those that bind, prepare and release, and what
   * requests collectives carry out meanwhile that have `replayed`. Absent where calls made once more would take as long. Not to
   * be used within `make`.
   */
  record?<Result>(make: () => Result): Recorded<Result>;

  /** `out[m]` = row `ids[m] - firstId` of table, or zeros where it has no such row. */
  embedding(out: Operand, ids: Operand, table: LinearWeight, rows: number, firstId: number): void;

  /** `out[i] = source[indices[first + i]]` for i in `[0, rows)`. */
  gatherRows(out: Operand, source: Operand, indices: Operand, first: number, rows: number): void;

  /** `out[m] = x[m] / sqrt(mean(x[m]^2) + epsilon) * weight`. weight: f32 `[width]`. out may be x. */
  rmsNorm(out: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void;

  /** `residual[m] += x[m]`, then out is the rmsNorm of residual. out may be x. */
  addRmsNorm(out: Operand, residual: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void;

  /**
   * RMSNorm of heads, in place (Qwen3's query and key norms): each of `heads` groups of `headSize` columns of x from
   * `firstColumn` on is normalized by itself. weight: f32 `[headSize]`.
   */
  headNorm(
    x: Operand,
    weight: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
    epsilon: number,
  ): void;

  /**
   * `out[m][firstColumn + n] = sum_k x[m][k] * weight[n][k] + bias[firstColumn + n]`. bias: f32, as long as a row of out,
   * or null. With the same kernels and instruction set, an element has the same bits for any number of rows and
   * whichever outputs the weight holds besides.
   */
  linear(
    out: Operand,
    x: Operand,
    weight: LinearWeight,
    bias: Operand | null,
    rows: number,
    firstColumn?: number,
  ): void;

  /**
   * Rotates, in place, `heads` heads of `headSize` columns of x from `firstColumn` on. Column i of a head is paired
   * with column i + headSize / 2. cosSin: f32 `[positions, headSize]`, row p holding headSize / 2 cosines, then as many
   * sines.
   */
  rope(
    x: Operand,
    positions: Operand,
    cosSin: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
  ): void;

  /**
   * Copies columns `[keyColumn, + kvHeads * headSize)` and those at `valueColumn` of row m of source into cache slot `slots[m]`
   * (block * blockSize + offset), rounded to the same bits on every instruction set.
   */
  writeKv(cache: KvCache, source: Operand, slots: Operand, rows: number, keyColumn: number, valueColumn: number): void;

  /**
   * Causal attention of the queries in the first `heads * headSize` columns of q over the paged cache, softmax in f32.
   * Query i of sequence s stands at position `contextLength - queries + i`. out: `[capacity, >= heads * headSize]`. With
   * the same kernels and instruction set, a query has the same bits in a prefill of any length and in a decode step, alone
   * and among other sequences.
   */
  attention(
    out: Operand,
    q: Operand,
    cache: KvCache,
    batch: AttentionBatch,
    sequences: number,
    shape: AttentionShape,
  ): void;

  /** `out[m][i] = silu(gateUp[m][i]) * gateUp[m][width + i]`; gateUp has twice the columns of out. */
  siluMul(out: Operand, gateUp: Operand, rows: number): void;

  /**
   * Largest of the first `columns` logits of each row and its id, `firstId +` column; the lowest id among equals. A NaN
   * anywhere gives NaN and firstId; no columns give -Infinity and firstId.
   */
  argmax(values: Operand, ids: Operand, logits: Operand, rows: number, columns: number, firstId: number): void;
}
