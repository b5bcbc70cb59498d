/**
 * Blocks of 256 elements in sub-blocks that have scales of their own: Q4_K, Q5_K, Q6_K.
 * Layouts and arithmetic: `block_q*_K` in ggml-common.h; the values equal `gguf/quants.py` to the bit. A scale times a
 * sub-scale times a code is exact in binary32 (11 + 7 + 6 bits at most); a difference is rounded once, by the store.
 */
import { type Dequantize, halfTable } from "./block-formats.js";

/** Elements of one block of this file. */
export const K_BLOCK_ELEMENTS = 256;

const SUB_BLOCKS = 8;
const SUB_BLOCK_ELEMENTS = 32;

/** Eight 6-bit scales and eight 6-bit minimums, packed in twelve bytes. */
function unpackScales(source: Uint8Array, at: number, scales: Uint8Array, minimums: Uint8Array): void {
  for (let i = 0; i < 4; i++) {
    const scale = source[at + i] ?? 0;
    const minimum = source[at + 4 + i] ?? 0;
    const low = source[at + 8 + i] ?? 0;
    scales[i] = scale & 63;
    minimums[i] = minimum & 63;
    scales[i + 4] = (low & 15) | ((scale >> 6) << 4);
    minimums[i + 4] = (low >> 4) | ((minimum >> 6) << 4);
  }
}

const scales = new Uint8Array(SUB_BLOCKS);
const minimums = new Uint8Array(SUB_BLOCKS);

/** Sub-blocks 2j and 2j + 1 share 32 bytes: the even one has the low four bits. */
export const dequantizeQ4_K: Dequantize = (source, count, out) => {
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 144, to += K_BLOCK_ELEMENTS) {
    dequantizeWithMinimums(source, at, at + 16, -1, out, to);
  }
};

/** As Q4_K, and bit `j` of byte `i` of the 32 bytes after the scales is the fifth bit of element `i` of sub-block `j`. */
export const dequantizeQ5_K: Dequantize = (source, count, out) => {
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 176, to += K_BLOCK_ELEMENTS) {
    dequantizeWithMinimums(source, at, at + 48, at + 16, out, to);
  }
};

function dequantizeWithMinimums(
  source: Uint8Array,
  at: number,
  codesAt: number,
  highAt: number,
  out: Float32Array,
  to: number,
): void {
  const half = halfTable();
  const scale = half[(source[at] ?? 0) | ((source[at + 1] ?? 0) << 8)] ?? 0;
  const minimum = half[(source[at + 2] ?? 0) | ((source[at + 3] ?? 0) << 8)] ?? 0;
  unpackScales(source, at + 4, scales, minimums);
  for (let sub = 0; sub < SUB_BLOCKS; sub++) {
    const subScale = scale * (scales[sub] ?? 0);
    const subMinimum = minimum * (minimums[sub] ?? 0);
    const shift = (sub & 1) * 4;
    const codes = codesAt + (sub >> 1) * SUB_BLOCK_ELEMENTS;
    const start = to + sub * SUB_BLOCK_ELEMENTS;
    for (let i = 0; i < SUB_BLOCK_ELEMENTS; i++) {
      const high = highAt < 0 ? 0 : (((source[highAt + i] ?? 0) >> sub) & 1) << 4;
      out[start + i] = subScale * ((((source[codes + i] ?? 0) >> shift) & 15) | high) - subMinimum;
    }
  }
}

/**
 * 128 bytes of low four bits, 64 bytes of high two bits, sixteen signed sub-scales, the scale. Each half of 128 elements
 * is four runs of 32: runs 0 and 2 take the low and high bits of bytes 0..31, runs 1 and 3 those of bytes 32..63; run r
 * takes its high bits from bits 2r and 2r + 1.
 */
export const dequantizeQ6_K: Dequantize = (source, count, out) => {
  const half = halfTable();
  for (let block = 0, at = 0, to = 0; block < count; block++, at += 210, to += K_BLOCK_ELEMENTS) {
    const scale = half[(source[at + 208] ?? 0) | ((source[at + 209] ?? 0) << 8)] ?? 0;
    for (let run = 0; run < 8; run++) {
      const inHalf = run & 3;
      const low = at + (run >> 2) * 64 + (inHalf & 1) * 32;
      const high = at + 128 + (run >> 2) * 32;
      const start = to + run * 32;
      for (let i = 0; i < 32; i++) {
        const code =
          (((source[low + i] ?? 0) >> ((inHalf >> 1) * 4)) & 15) |
          ((((source[high + i] ?? 0) >> (inHalf * 2)) & 3) << 4);
        const subScale = ((source[at + 192 + run * 2 + (i >> 4)] ?? 0) << 24) >> 24;
        out[start + i] = scale * subScale * (code - 32);
      }
    }
  }
};
