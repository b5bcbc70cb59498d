/** Paged attention and cache writes, written as the formulas read: the oracle of the native ones. */
import type { Operand } from "../core/operand.js";
import type { AttentionBatch, AttentionShape, KvCache } from "./kernels.js";
import { expect, expectColumns, expectElements, expectRows, indexBelow } from "./reference-checks.js";
import type { FloatView, OperandTable } from "./reference-operands.js";

function expectCache(cache: KvCache): void {
  const { keys, values, kvHeads, headSize, blockSize } = cache;
  expectColumns(keys, kvHeads * blockSize * headSize);
  expectColumns(values, keys.columns);
  expect(values.rows === keys.rows, `${values.tensor.name} to have ${keys.rows} blocks`, values.rows);
  expect(values.tensor.dtype === keys.tensor.dtype, `values of ${keys.tensor.dtype}`, values.tensor.dtype);
}

/** Index of the first element of a head in a block. */
function blockIndex(cache: KvCache, block: number, head: number): number {
  return (block * cache.kvHeads + head) * cache.blockSize * cache.headSize;
}

export function writeKv(
  table: OperandTable,
  cache: KvCache,
  source: Operand,
  slots: Operand,
  rows: number,
  keyColumn: number,
  valueColumn: number,
): void {
  const { kvHeads, headSize, blockSize } = cache;
  expectCache(cache);
  expectRows(source, rows);
  expectElements(slots, rows);
  const lastColumn = Math.max(keyColumn, valueColumn) + kvHeads * headSize;
  expect(lastColumn <= source.columns, `columns up to ${source.columns} at most`, lastColumn);
  const [keys, values] = [table.view(cache.keys), table.view(cache.values)];
  const [from, slotOf] = [table.floats(source), table.integers(slots)];
  for (let m = 0; m < rows; m++) {
    const slot = indexBelow(slotOf, m, cache.keys.rows * blockSize, "slots");
    for (let h = 0; h < kvHeads; h++) {
      const to = blockIndex(cache, Math.floor(slot / blockSize), h);
      const offset = slot % blockSize;
      const key = m * source.columns + keyColumn + h * headSize;
      const value = m * source.columns + valueColumn + h * headSize;
      for (let d = 0; d < headSize; d++) {
        keys.write(to + d * blockSize + offset, from.subarray(key + d, key + d + 1));
      }
      values.write(to + offset * headSize, from.subarray(value, value + headSize));
    }
  }
}

/** One query of one head, and what it attends to. */
interface Query {
  readonly q: Float32Array;
  readonly out: Float32Array;
  /** Positions `[first, end)` it sees. */
  readonly first: number;
  readonly end: number;
  /** Index in the cache of the block of a position, for the KV head that the query reads. */
  readonly blockOf: (position: number) => number;
}

/** softmax(q K^T) V over the positions a query sees. */
function attend(query: Query, keys: FloatView, values: FloatView, shape: AttentionShape, blockSize: number): void {
  const { q, out, first, end, blockOf } = query;
  const { scale, softCap, headSize } = shape;
  const row = new Float32Array(headSize);
  const block = new Float32Array(headSize * blockSize);
  const scores = new Float64Array(end - first);
  for (let p = first; p < end; p++) {
    if (p === first || p % blockSize === 0) keys.read(blockOf(p), block);
    let dot = 0;
    for (let d = 0; d < headSize; d++) dot += (q[d] ?? 0) * (block[d * blockSize + (p % blockSize)] ?? 0);
    const score = dot * scale;
    scores[p - first] = softCap === 0 ? score : softCap * Math.tanh(score / softCap);
  }
  const maximum = scores.reduce((largest, score) => Math.max(largest, score), Number.NEGATIVE_INFINITY);
  const weights = scores.map((score) => Math.exp(score - maximum));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const sums = new Float64Array(headSize);
  for (let p = first; p < end; p++) {
    values.read(blockOf(p) + (p % blockSize) * headSize, row);
    const weight = weights[p - first] ?? 0;
    for (let d = 0; d < headSize; d++) sums[d] = (sums[d] ?? 0) + weight * (row[d] ?? 0);
  }
  for (let d = 0; d < headSize; d++) out[d] = (sums[d] ?? 0) / total;
}

export function attention(
  table: OperandTable,
  out: Operand,
  q: Operand,
  cache: KvCache,
  batch: AttentionBatch,
  sequences: number,
  shape: AttentionShape,
): void {
  const { heads, headSize, slidingWindow } = shape;
  expectCache(cache);
  expect(heads * headSize <= Math.min(q.columns, out.columns), `at least ${heads * headSize} columns`, q.columns);
  expectElements(batch.queryStarts, sequences + 1);
  expectElements(batch.contextLengths, sequences);
  expectRows(batch.blockTables, sequences);
  const [queries, outputs] = [table.floats(q), table.floats(out)];
  const [keys, values] = [table.view(cache.keys), table.view(cache.values)];
  const [starts, lengths] = [table.integers(batch.queryStarts), table.integers(batch.contextLengths)];
  const [blocks, kvHeadOf] = [table.integers(batch.blockTables), table.integers(shape.kvHeadOf)];
  for (let s = 0; s < sequences; s++) {
    const start = indexBelow(starts, s, q.rows + 1, "queryStarts");
    const count = indexBelow(starts, s + 1, Math.min(q.rows, out.rows) + 1, "queryStarts") - start;
    if (count === 0) continue;
    const context = indexBelow(lengths, s, batch.blockTables.columns * cache.blockSize + 1, "contextLengths");
    expect(count > 0 && context >= count, `a context of at least ${count} positions`, context);
    for (let i = 0; i < count; i++) {
      const end = context - count + i + 1;
      const first = slidingWindow === 0 ? 0 : Math.max(0, end - slidingWindow);
      for (let h = 0; h < heads; h++) {
        const kvHead = indexBelow(kvHeadOf, h, cache.kvHeads, "kvHeadOf");
        const blockOf = (position: number) => {
          const entry = s * batch.blockTables.columns + Math.floor(position / cache.blockSize);
          const block = indexBelow(blocks, entry, cache.keys.rows, "blockTables");
          return blockIndex(cache, block, kvHead);
        };
        const from = (start + i) * q.columns + h * headSize;
        const to = (start + i) * out.columns + h * headSize;
        const row = queries.subarray(from, from + headSize);
        const query = { q: row, out: outputs.subarray(to, to + headSize), first, end, blockOf };
        attend(query, keys, values, shape, cache.blockSize);
      }
    }
  }
}
