/**
 * Double quantization (Dettmers et al. 2023): absmax, less its mean, in 8-bit codes of the dynamic map, 256 to a scale.
 * Byte for byte as bitsandbytes 0.50 does it on a CPU.
 */
import { DYNAMIC_MAP } from "./codebooks.js";
import { NESTED_BLOCK } from "./quant-state.js";

const { fround } = Math;

/** Entries of the table by which bitsandbytes finds 8-bit codes. */
const TABLE_ENTRIES = 65_536;

let table: Uint8Array | undefined;

/**
 * Entry i: the code nearest to `i * 2 / 65535 - 1`, the lower one of two equally near. It is not exactly a search: a value
 * takes the code of the entry it is rounded to, which near a midpoint may be the neighbour of the nearest code.
 */
function codeTable(): Uint8Array {
  if (table !== undefined) return table;
  const entries = new Uint8Array(TABLE_ENTRIES);
  let code = 0;
  for (let i = 0; i < TABLE_ENTRIES; i++) {
    const value = fround(-1 + fround((2 * i) / (TABLE_ENTRIES - 1)));
    while (code < 255 && midpoint(code) < value) code++;
    entries[i] = code;
  }
  table = entries;
  return entries;
}

/** Between a code and the next. */
function midpoint(code: number): number {
  return fround(fround((DYNAMIC_MAP[code] ?? 0) + (DYNAMIC_MAP[code + 1] ?? 0)) / 2);
}

/** absmax, quantized. */
export interface NestedAbsmax {
  /** One code a block of the weight. */
  readonly codes: Uint8Array;
  /** One scale for each NESTED_BLOCK codes. */
  readonly absmax: Float32Array;
  /** f32 mean, subtracted before and added after. */
  readonly offset: number;
}

/** Quantizes the absmax of all blocks of a tensor. */
export function quantizeAbsmax(absmax: Float32Array): NestedAbsmax {
  const entries = codeTable();
  let sum = 0;
  for (let i = 0; i < absmax.length; i++) sum += absmax[i] ?? 0;
  const offset = fround(sum / absmax.length);
  const codes = new Uint8Array(absmax.length);
  const nested = new Float32Array(Math.ceil(absmax.length / NESTED_BLOCK));
  for (let group = 0; group < nested.length; group++) {
    const start = group * NESTED_BLOCK;
    const end = Math.min(start + NESTED_BLOCK, absmax.length);
    let largest = 0;
    for (let i = start; i < end; i++) largest = Math.max(largest, Math.abs(fround((absmax[i] ?? 0) - offset)));
    nested[group] = largest;
    // All equal to the mean: every code decodes to it; bitsandbytes writes 0.
    if (largest === 0) continue;
    for (let i = start; i < end; i++) {
      const scaled = fround(fround((absmax[i] ?? 0) - offset) / largest);
      codes[i] = entries[fround(fround(fround(scaled + 1) * 32767.5) + 0.5) | 0] ?? 0;
    }
  }
  return { codes, absmax: nested, offset };
}

/** `out[i]` = absmax of block i: code times scale, plus the offset; two roundings. */
export function expandAbsmax(
  { codes, absmax, offset }: NestedAbsmax,
  map: Float32Array,
  nestedBlock: number,
  out: Float32Array,
): void {
  for (let i = 0; i < codes.length; i++) {
    const scale = absmax[Math.floor(i / nestedBlock)] ?? 0;
    out[i] = fround((map[codes[i] ?? 0] ?? 0) * scale) + offset;
  }
}
