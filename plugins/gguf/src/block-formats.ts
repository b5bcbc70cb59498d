/**
 * Blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 * Layouts and arithmetic: `block_q*` in ggml-common.h; the values equal `gguf/quants.py` to the bit. All products below
 * are exact in binary32, so the order of the operations does not matter; a sum is rounded once, by the store.
 */
import { f16ToF32 } from "shardloom/plugin";

/** Turns `count` blocks at the start of `source` into `count * blockElements` values at the start of `out`. */
export type Dequantize = (source: Uint8Array, count: number, out: Float32Array) => void;

let halves: Float32Array | undefined;

/** The values of all 65,536 binary16 bit patterns. */
export function halfTable(): Float32Array {
  if (halves === undefined) {
    halves = new Float32Array(65_536);
    for (let bits = 0; bits < halves.length; bits++) halves[bits] = f16ToF32(bits);
  }
  return halves;
}

/** Elements of one block of this file. */
export const BLOCK_ELEMENTS = 32;

const HALF_BLOCK = BLOCK_ELEMENTS / 2;

/** Element `i` of a block shares byte `i` with element `i + 16`: it has the low four bits. */
export const dequantizeQ4_0: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 18, to += BLOCK_ELEMENTS) {
    const scale = half[byte(source, at) | (byte(source, at + 1) << 8)] ?? 0;
    for (let i = 0; i < HALF_BLOCK; i++) {
      const codes = byte(source, at + 2 + i);
      out[to + i] = scale * ((codes & 15) - 8);
      out[to + HALF_BLOCK + i] = scale * ((codes >> 4) - 8);
    }
  }
};

export const dequantizeQ4_1: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 20, to += BLOCK_ELEMENTS) {
    const scale = half[byte(source, at) | (byte(source, at + 1) << 8)] ?? 0;
    const minimum = half[byte(source, at + 2) | (byte(source, at + 3) << 8)] ?? 0;
    for (let i = 0; i < HALF_BLOCK; i++) {
      const codes = byte(source, at + 4 + i);
      out[to + i] = scale * (codes & 15) + minimum;
      out[to + HALF_BLOCK + i] = scale * (codes >> 4) + minimum;
    }
  }
};

/** Bit `i` of the 32-bit word after the scale is the fifth bit of element `i`. */
export const dequantizeQ5_0: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 22, to += BLOCK_ELEMENTS) {
    const scale = half[byte(source, at) | (byte(source, at + 1) << 8)] ?? 0;
    const high = word(source, at + 2);
    for (let i = 0; i < HALF_BLOCK; i++) {
      const codes = byte(source, at + 6 + i);
      out[to + i] = scale * (((codes & 15) | (((high >>> i) & 1) << 4)) - 16);
      out[to + HALF_BLOCK + i] = scale * (((codes >> 4) | (((high >>> (i + HALF_BLOCK)) & 1) << 4)) - 16);
    }
  }
};

export const dequantizeQ5_1: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 24, to += BLOCK_ELEMENTS) {
    const scale = half[byte(source, at) | (byte(source, at + 1) << 8)] ?? 0;
    const minimum = half[byte(source, at + 2) | (byte(source, at + 3) << 8)] ?? 0;
    const high = word(source, at + 4);
    for (let i = 0; i < HALF_BLOCK; i++) {
      const codes = byte(source, at + 8 + i);
      out[to + i] = scale * ((codes & 15) | (((high >>> i) & 1) << 4)) + minimum;
      out[to + HALF_BLOCK + i] = scale * ((codes >> 4) | (((high >>> (i + HALF_BLOCK)) & 1) << 4)) + minimum;
    }
  }
};

export const dequantizeQ8_0: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 34, to += BLOCK_ELEMENTS) {
    const scale = half[byte(source, at) | (byte(source, at + 1) << 8)] ?? 0;
    for (let i = 0; i < BLOCK_ELEMENTS; i++) out[to + i] = scale * ((byte(source, at + 2 + i) << 24) >> 24);
  }
};

function byte(source: Uint8Array, index: number): number {
  return source[index] ?? 0;
}

function word(source: Uint8Array, index: number): number {
  return (
    byte(source, index) |
    (byte(source, index + 1) << 8) |
    (byte(source, index + 2) << 16) |
    (byte(source, index + 3) << 24)
  );
}
