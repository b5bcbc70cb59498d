/**
 * Blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 * Layouts and arithmetic: `block_q*` in ggml-common.h; the values equal `gguf/quants.py` to the bit.
 */
import { type BlockFormat, halfAt, packNeighbours, type Unpack } from "./unpacking.js";

/** Elements of one block of this file. */
export const BLOCK_ELEMENTS = 32;

const HALF_BLOCK = BLOCK_ELEMENTS / 2;

/** Element `i` of a block shares byte `i` with element `i + 16`: it has the low four bits. */
const unpackQ4_0: Unpack = (source, count, { codes, scales }) => {
  for (let block = 0, at = 0; block < count; block++, at += 18) {
    scales[block] = halfAt(source, at);
    packNeighbours(source, at + 2, HALF_BLOCK, codes, block * HALF_BLOCK);
  }
};

const unpackQ4_1: Unpack = (source, count, { codes, scales, minimums }) => {
  for (let block = 0, at = 0; block < count; block++, at += 20) {
    scales[block] = halfAt(source, at);
    minimums[block] = halfAt(source, at + 2);
    packNeighbours(source, at + 4, HALF_BLOCK, codes, block * HALF_BLOCK);
  }
};

const unpackQ5_0: Unpack = (source, count, { codes, scales }) => {
  for (let block = 0, at = 0; block < count; block++, at += 22) {
    scales[block] = halfAt(source, at);
    unpackFiveBits(source, at + 2, 16, codes, block * BLOCK_ELEMENTS);
  }
};

const unpackQ5_1: Unpack = (source, count, { codes, scales, minimums }) => {
  for (let block = 0, at = 0; block < count; block++, at += 24) {
    scales[block] = halfAt(source, at);
    minimums[block] = halfAt(source, at + 2);
    unpackFiveBits(source, at + 4, 0, codes, block * BLOCK_ELEMENTS);
  }
};

/** Bit `i` of the 32-bit word at `at` is the fifth bit of element `i`; the low four follow it. */
function unpackFiveBits(source: Uint8Array, at: number, zero: number, codes: Uint8Array, to: number): void {
  const high =
    (source[at] ?? 0) | ((source[at + 1] ?? 0) << 8) | ((source[at + 2] ?? 0) << 16) | ((source[at + 3] ?? 0) << 24);
  for (let i = 0; i < HALF_BLOCK; i++) {
    const low = source[at + 4 + i] ?? 0;
    codes[to + i] = ((low & 15) | (((high >>> i) & 1) << 4)) - zero;
    codes[to + HALF_BLOCK + i] = ((low >> 4) | (((high >>> (i + HALF_BLOCK)) & 1) << 4)) - zero;
  }
}

const unpackQ8_0: Unpack = (source, count, { codes, scales }) => {
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 34, to += BLOCK_ELEMENTS) {
    scales[block] = halfAt(source, at);
    for (let i = 0; i < BLOCK_ELEMENTS; i++) codes[to + i] = source[at + 2 + i] ?? 0;
  }
};

const format = (execution: BlockFormat["execution"], zero: number, hasMinimums: boolean, unpack: Unpack) => {
  return { execution, zero, scaleElements: BLOCK_ELEMENTS, hasMinimums, unpack } satisfies BlockFormat;
};

export const Q4_0: BlockFormat = format("code4", 8, false, unpackQ4_0);
export const Q4_1: BlockFormat = format("code4", 0, true, unpackQ4_1);
export const Q5_0: BlockFormat = format("int8", 0, false, unpackQ5_0);
export const Q5_1: BlockFormat = format("int8", 0, true, unpackQ5_1);
export const Q8_0: BlockFormat = format("int8", 0, false, unpackQ8_0);
