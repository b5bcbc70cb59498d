/**
 * Blocks of 256 elements in sub-blocks that have scales of their own: Q4_K, Q5_K, Q6_K.
 * Layouts and arithmetic: `block_q*_K` in ggml-common.h; the values equal `gguf/quants.py` to the bit. A block's scale
 * times a sub-block's is exact in binary32 (11 + 7 bits at most); a minimum that is subtracted there is negative here.
 */
import type { BlockLayout } from "shardloom/plugin";
import { type BlockFormat, type BlockValues, halfAt, laidOut, type ReadHeaders, type Unpack } from "./unpacking.js";

/** Elements of one block of this file. */
export const K_BLOCK_ELEMENTS = 256;

const SUB_BLOCKS = 8;
const SUB_BLOCK_ELEMENTS = 32;

/** Factors and packed scales, then the codes: sub-blocks 2j and 2j + 1 share 32 bytes, the even one has the low four bits. */
const Q4_K_LAYOUT: BlockLayout = {
  blockBytes: 144,
  codesOffset: 16,
  groups: SUB_BLOCKS / 2,
  groupBytes: SUB_BLOCK_ELEMENTS,
  codeBits: 4,
  headerOffset: 0,
  headerBytes: 16,
};

const readQ4_K: ReadHeaders = (headers, count, scales, minimums) => {
  for (let block = 0; block < count; block++) unpackScales(headers, 16 * block, block * SUB_BLOCKS, scales, minimums);
};

/** As Q4_K, and bit `j` of byte `i` of the 32 bytes after the scales is the fifth bit of element `i` of sub-block `j`. */
const unpackQ5_K: Unpack = (source, count, { codes, scales, minimums }) => {
  for (let block = 0, at = 0; block < count; block++, at += 176) {
    unpackScales(source, at, block * SUB_BLOCKS, scales, minimums);
    for (let sub = 0; sub < SUB_BLOCKS; sub++) {
      const low = at + 48 + (sub >> 1) * SUB_BLOCK_ELEMENTS;
      const shift = (sub & 1) * 4;
      const to = block * K_BLOCK_ELEMENTS + sub * SUB_BLOCK_ELEMENTS;
      for (let i = 0; i < SUB_BLOCK_ELEMENTS; i++) {
        const high = ((source[at + 16 + i] ?? 0) >> sub) & 1;
        codes[to + i] = (((source[low + i] ?? 0) >> shift) & 15) | (high << 4);
      }
    }
  }
};

/** Two binary16 factors at `at`, then eight 6-bit scales and eight 6-bit minimums packed in twelve bytes. */
function unpackScales(source: Uint8Array, at: number, to: number, scales: BlockValues, minimums: BlockValues): void {
  const scale = halfAt(source, at);
  const minimum = -halfAt(source, at + 2);
  for (let i = 0; i < 4; i++) {
    const first = source[at + 4 + i] ?? 0;
    const second = source[at + 8 + i] ?? 0;
    const third = source[at + 12 + i] ?? 0;
    scales[to + i] = scale * (first & 63);
    minimums[to + i] = minimum * (second & 63);
    scales[to + i + 4] = scale * ((third & 15) | ((first >> 6) << 4));
    minimums[to + i + 4] = minimum * ((third >> 4) | ((second >> 6) << 4));
  }
}

/**
 * 128 bytes of low four bits, 64 bytes of high two bits, sixteen signed sub-scales, the scale. Each half of 128 elements
 * is four runs of 32: runs 0 and 2 take the low and high bits of bytes 0..31, runs 1 and 3 those of bytes 32..63; run r
 * takes its high bits from bits 2r and 2r + 1.
 */
const unpackQ6_K: Unpack = (source, count, { codes, scales }) => {
  for (let block = 0, at = 0; block < count; block++, at += 210) {
    const scale = halfAt(source, at + 208);
    for (let sub = 0; sub < 16; sub++) scales[block * 16 + sub] = scale * (((source[at + 192 + sub] ?? 0) << 24) >> 24);
    for (let run = 0; run < 8; run++) {
      const inHalf = run & 3;
      const low = at + (run >> 2) * 64 + (inHalf & 1) * 32;
      const high = at + 128 + (run >> 2) * 32;
      const lowShift = (inHalf >> 1) * 4;
      const highShift = inHalf * 2;
      const to = block * K_BLOCK_ELEMENTS + run * 32;
      for (let i = 0; i < 32; i++) {
        const bits = (((source[low + i] ?? 0) >> lowShift) & 15) | ((((source[high + i] ?? 0) >> highShift) & 3) << 4);
        codes[to + i] = bits - 32;
      }
    }
  }
};

export const Q4_K: BlockFormat = laidOut(
  { execution: "code4", zero: 0, scaleElements: SUB_BLOCK_ELEMENTS, hasMinimums: true, valueDType: "f32" },
  Q4_K_LAYOUT,
  readQ4_K,
);

export const Q5_K: BlockFormat = {
  execution: "int8",
  zero: 0,
  scaleElements: SUB_BLOCK_ELEMENTS,
  hasMinimums: true,
  valueDType: "f32",
  unpack: unpackQ5_K,
};

export const Q6_K: BlockFormat = {
  execution: "int8",
  zero: 0,
  scaleElements: 16,
  hasMinimums: false,
  valueDType: "f32",
  unpack: unpackQ6_K,
};
