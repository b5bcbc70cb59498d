/**
 * Blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 * Layouts and arithmetic: `block_q*` in ggml-common.h; the values equal `gguf/quants.py` to the bit.
 */
import type { BlockLayout } from "shardloom/plugin";
import { type BlockFormat, halfBitsAt, laidOut, type ReadHeaders, type Unpack } from "./unpacking.js";

/** Elements of one block of this file. */
export const BLOCK_ELEMENTS = 32;

const HALF_BLOCK = BLOCK_ELEMENTS / 2;

const unpackQ5_0: Unpack = (source, count, { codes, scales }) => {
  for (let block = 0, at = 0; block < count; block++, at += 22) {
    scales[block] = halfBitsAt(source, at);
    unpackFiveBits(source, at + 2, 16, codes, block * BLOCK_ELEMENTS);
  }
};

const unpackQ5_1: Unpack = (source, count, { codes, scales, minimums }) => {
  for (let block = 0, at = 0; block < count; block++, at += 24) {
    scales[block] = halfBitsAt(source, at);
    minimums[block] = halfBitsAt(source, at + 2);
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

/** A block of 4-bit codes behind one or two binary16 numbers. Element `i` has the low bits of byte `i`, `i` + 16 the high. */
const halves = (headerBytes: number): BlockLayout => ({
  blockBytes: headerBytes + HALF_BLOCK,
  codesOffset: headerBytes,
  groups: 1,
  groupBytes: HALF_BLOCK,
  codeBits: 4,
  headerOffset: 0,
  headerBytes,
});

const readScales: ReadHeaders = (headers, count, scales) => {
  if (headers.byteOffset % 2 === 0) {
    scales.set(new Uint16Array(headers.buffer, headers.byteOffset, count));
    return;
  }
  for (let block = 0; block < count; block++) scales[block] = halfBitsAt(headers, 2 * block);
};

const readScalesAndMinimums: ReadHeaders = (headers, count, scales, minimums) => {
  for (let block = 0; block < count; block++) {
    scales[block] = halfBitsAt(headers, 4 * block);
    minimums[block] = halfBitsAt(headers, 4 * block + 2);
  }
};

const Q8_LAYOUT: BlockLayout = {
  blockBytes: 2 + BLOCK_ELEMENTS,
  codesOffset: 2,
  groups: 1,
  groupBytes: BLOCK_ELEMENTS,
  codeBits: 8,
  headerOffset: 0,
  headerBytes: 2,
};

const described = (execution: BlockFormat["execution"], zero: number, hasMinimums: boolean) => {
  return { execution, zero, scaleElements: BLOCK_ELEMENTS, hasMinimums, valueDType: "f16" as const };
};

export const Q4_0: BlockFormat = laidOut(described("code4", 8, false), halves(2), readScales);
export const Q4_1: BlockFormat = laidOut(described("code4", 0, true), halves(4), readScalesAndMinimums);
export const Q5_0: BlockFormat = { ...described("int8", 0, false), unpack: unpackQ5_0 };
export const Q5_1: BlockFormat = { ...described("int8", 0, true), unpack: unpackQ5_1 };
export const Q8_0: BlockFormat = laidOut(described("int8", 0, false), Q8_LAYOUT, readScales);
