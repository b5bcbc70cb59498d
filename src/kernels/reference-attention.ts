/** Paged attention and cache writes, written as the formulas read: the oracle of the native ones. */
import type { Operand } from "../core/operand.js";
import type { AttentionBatch, AttentionShape, KvCache } from "./kernels.js";
import { expect, expectElements, expectRows, indexBelow } from "./reference-checks.js";
import { type CacheView, cacheView } from "./reference-kv-cache.js";
import type { OperandTable } from "./reference-operands.js";

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
  const view = cacheView(table, cache);
  expectRows(source, rows);
  expectElements(slots, rows);
  const lastColumn = Math.max(keyColumn, valueColumn) + kvHeads * headSize;
  expect(lastColumn <= source.columns, `columns up to ${source.columns} at most`, lastColumn);
  const [from, slotOf] = [table.floats(source), table.integers(slots)];
  for (let m = 0; m < rows; m++) {
    const slot = indexBelow(slotOf, m, cache.keys.rows * blockSize, "slots");
    for (let h = 0; h < kvHeads; h++) {
      const key = m * source.columns + keyColumn + h * headSize;
      const value = m * source.columns + valueColumn + h * headSize;
      const head = Math.floor(slot / blockSize) * kvHeads + h;
      view.write(head, slot % blockSize, from.subarray(key, key + headSize), from.subarray(value, value + headSize));
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
  /** The KV head that the query reads, in the block of a position. */
  readonly headOf: (position: number) => number;
}

/** softmax(q K^T) V over the positions a query sees. */
function attend(query: Query, cache: CacheView, shape: AttentionShape, blockSize: number): void {
  const { q, out, first, end, headOf } = query;
  const { scale, softCap, headSize } = shape;
  const row = new Float32Array(headSize);
  const block = new Float32Array(headSize * blockSize);
  const scores = new Float64Array(end - first);
  for (let p = first; p < end; p++) {
    if (p === first || p % blockSize === 0) cache.readKeys(headOf(p), block);
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
    cache.readValue(headOf(p), p % blockSize, row);
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
  const view = cacheView(table, cache);
  expect(heads * headSize <= Math.min(q.columns, out.columns), `at least ${heads * headSize} columns`, q.columns);
  expectElements(batch.queryStarts, sequences + 1);
  expectElements(batch.contextLengths, sequences);
  expectRows(batch.blockTables, sequences);
  const [queries, outputs] = [table.floats(q), table.floats(out)];
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
        const headOf = (position: number) => {
          const entry = s * batch.blockTables.columns + Math.floor(position / cache.blockSize);
          const block = indexBelow(blocks, entry, cache.keys.rows, "blockTables");
          return block * cache.kvHeads + kvHead;
        };
        const from = (start + i) * q.columns + h * headSize;
        const to = (start + i) * out.columns + h * headSize;
        const row = queries.subarray(from, from + headSize);
        const query = { q: row, out: outputs.subarray(to, to + headSize), first, end, headOf };
        attend(query, view, shape, cache.blockSize);
      }
    }
  }
}
