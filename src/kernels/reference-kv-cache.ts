/** A paged KV cache as the reference kernels read and write it, whatever it holds its elements in. */

import { roundBlock } from "./activation-levels.js";
import type { KvCache } from "./kernels.js";
import { KV_CODE_LIMIT } from "./kv-cache-dtype.js";
import { expect, expectColumns } from "./reference-checks.js";
import type { FloatView, OperandTable } from "./reference-operands.js";

/** `head` is `block * kvHeads + kvHead`: a KV head of a block. */
export interface CacheView {
  /** `out[headSize, blockSize]` = the keys of a head. */
  readKeys(head: number, out: Float32Array): void;
  /** `out[headSize]` = the value at an offset of the block. */
  readValue(head: number, offset: number, out: Float32Array): void;
  /** Stores a key and a value at an offset of the block. */
  write(head: number, offset: number, key: Float32Array, value: Float32Array): void;
}

/** Checks the extents of a cache. Throws InternalError. */
export function cacheView(table: OperandTable, cache: KvCache): CacheView {
  const { keys, values, scales, kvHeads, headSize, blockSize } = cache;
  expectColumns(keys, kvHeads * blockSize * headSize);
  expectColumns(values, keys.columns);
  expect(values.rows === keys.rows, `${values.tensor.name} to have ${keys.rows} blocks`, values.rows);
  expect(values.tensor.dtype === keys.tensor.dtype, `values of ${keys.tensor.dtype}`, values.tensor.dtype);
  const coded = keys.tensor.dtype === "i8";
  expect(coded === (scales !== null), "scales with keys of i8 and with no others", keys.tensor.dtype);
  if (scales === null) return new FloatCache(table.view(keys), table.view(values), cache);
  expectColumns(scales, 2 * kvHeads * blockSize);
  expect(scales.rows === keys.rows, `${scales.tensor.name} to have ${keys.rows} blocks`, scales.rows);
  const [keyCodes, valueCodes] = [table.codes(keys), table.codes(values)];
  return new CodedCache(keyCodes, valueCodes, table.floats(scales), cache);
}

type Extents = Pick<KvCache, "headSize" | "blockSize">;

class FloatCache implements CacheView {
  readonly #keys: FloatView;
  readonly #values: FloatView;
  readonly #headSize: number;
  readonly #blockSize: number;

  constructor(keys: FloatView, values: FloatView, { headSize, blockSize }: Extents) {
    this.#keys = keys;
    this.#values = values;
    this.#headSize = headSize;
    this.#blockSize = blockSize;
  }

  readKeys(head: number, out: Float32Array): void {
    this.#keys.read(head * this.#headSize * this.#blockSize, out);
  }

  readValue(head: number, offset: number, out: Float32Array): void {
    this.#values.read((head * this.#blockSize + offset) * this.#headSize, out);
  }

  write(head: number, offset: number, key: Float32Array, value: Float32Array): void {
    const to = head * this.#headSize * this.#blockSize + offset;
    for (let d = 0; d < key.length; d++) this.#keys.write(to + d * this.#blockSize, key.subarray(d, d + 1));
    this.#values.write((head * this.#blockSize + offset) * this.#headSize, value);
  }
}

class CodedCache implements CacheView {
  readonly #keys: Int8Array;
  readonly #values: Int8Array;
  readonly #scales: Float32Array;
  readonly #blockSize: number;
  readonly #rounded: Int8Array;

  constructor(keys: Int8Array, values: Int8Array, scales: Float32Array, { headSize, blockSize }: Extents) {
    this.#keys = keys;
    this.#values = values;
    this.#scales = scales;
    this.#blockSize = blockSize;
    this.#rounded = new Int8Array(headSize);
  }

  readKeys(head: number, out: Float32Array): void {
    const [from, size] = [head * out.length, this.#blockSize];
    for (let i = 0; i < out.length; i++) out[i] = (this.#keys[from + i] ?? 0) * this.#scaleOf(head, 0, i % size);
  }

  readValue(head: number, offset: number, out: Float32Array): void {
    const from = (head * this.#blockSize + offset) * out.length;
    const scale = this.#scaleOf(head, 1, offset);
    for (let d = 0; d < out.length; d++) out[d] = (this.#values[from + d] ?? 0) * scale;
  }

  write(head: number, offset: number, key: Float32Array, value: Float32Array): void {
    const [codes, size] = [this.#rounded, this.#blockSize];
    this.#scales[2 * head * size + offset] = roundBlock(key, codes, KV_CODE_LIMIT);
    const to = head * codes.length * size + offset;
    for (let d = 0; d < codes.length; d++) this.#keys[to + d * size] = codes[d] ?? 0;
    this.#scales[(2 * head + 1) * size + offset] = roundBlock(value, codes, KV_CODE_LIMIT);
    this.#values.set(codes, (head * size + offset) * codes.length);
  }

  #scaleOf(head: number, part: 0 | 1, offset: number): number {
    return this.#scales[(2 * head + part) * this.#blockSize + offset] ?? 0;
  }
}
