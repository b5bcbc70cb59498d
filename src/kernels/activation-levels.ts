/**
 * How activations meet weights, and what the levels that round them are, exactly.
 *
 * - `f32`: activations as they are, weights dequantized, f32 sums.
 * - `bf16`, for weights in bf16: activations are rounded to bf16, to nearest, ties to even. Sums are f32, in an order and with
 *   roundings that are the same on every instruction set (Bf16LinearArgs of native/kernels/kernels.h). Frameworks that run a
 *   bf16 model on a GPU round its activations in this way everywhere; here only those that meet a weight.
 * - `int16`, `int8`, for codes: activations are rounded to whole numbers in blocks of inputs, at `int16` in steps of powers of two,
 *   codes of weights to whole numbers of as many bits; the products of a block are summed exactly, and the sum is scaled by what the block's activations and
 *   weights are worth. Blocks are added in the order of inputs, in f32.
 * - `auto`: a level by format of the weight, instruction set and rows of a call. At one level an element has the same bits
 *   for any number of rows; `auto` may take another level for another number of rows.
 *
 * A weight that a level is not for is multiplied with in f32.
 *
 * The bounds below keep 64 products inside 32 bits: 64 * 4096 * 8191 < 2^31, 64 * 128 * 32767 < 2^31.
 */

import type { DenseWeight } from "./kernels.js";

export const ACTIVATIONS = ["auto", "f32", "bf16", "int16", "int8"] as const;
export type Activations = (typeof ACTIVATIONS)[number];
export type ActivationLevel = Exclude<Activations, "auto">;
export type IntegerLevel = Exclude<ActivationLevel, "f32" | "bf16">;

export function isActivations(value: string): value is Activations {
  return ACTIVATIONS.some((each) => each === value);
}

/** Whether a weight can be multiplied with at the level `bf16`: it is in bf16, and its inputs make pairs. */
export function takesBf16({ matrix }: DenseWeight): boolean {
  return matrix.tensor.dtype === "bf16" && matrix.columns % 2 === 0;
}

/** Largest magnitude of an activation's code, by the format of the weight it meets. */
export const ACTIVATION_LIMIT = {
  code4: { int16: 8191, int8: 127 },
  int8: { int16: 32767, int8: 127 },
} as const;

/** Largest magnitude of a whole number that stands for an entry of a 4-bit codebook. */
const CODEBOOK_LIMIT = { int16: 4096, int8: 127 } as const;

/** A block whose largest magnitude is below this counts as zeros. */
const LEAST_MAGNITUDE = 2 ** -100;
const SMALLEST_NORMAL = 2 ** -126;

const { fround } = Math;

/** Codes of these levels have steps that are powers of two: what is multiplied with one is exact wherever it is multiplied. */
const STEPS_ARE_POWERS_OF_TWO = { int16: true, int8: false } as const;

/** Inputs that share a step of the activations: the largest of 64, 32 and 16 that a block of the weight is a multiple of. */
export function activationBlock(blockSize: number): number {
  return [64, 32].find((size) => blockSize % size === 0) ?? 16;
}

/** A codebook in whole numbers: entry i is about `codes[i] * step`. */
export interface RoundedCodebook {
  readonly codes: readonly number[];
  readonly step: number;
}

/**
 * Rounds a codebook; exactly if its entries are whole multiples of a power of two within the limit, as those of linear codes
 * are, and then to the smallest whole numbers. Others take the whole range of `int16`; of 8 bits they take the scale that leaves the
 * least error (`fitScale`). Null where an entry is no number, or too close to 0 for f32: such a weight is multiplied with in f32.
 */
export function roundCodebook(entries: Float32Array, level: IntegerLevel): RoundedCodebook | null {
  if (!entries.every(Number.isFinite)) return null;
  const { scale, step } = codebookScale(entries, level);
  const rounded = fround(step);
  if (!Number.isFinite(rounded) || rounded < SMALLEST_NORMAL) return null;
  return { codes: [...entries].map((entry) => roundHalfEven(entry * scale)), step: rounded };
}

/** Entry i becomes `entry * scale`, rounded, and is about that times `step`. */
interface CodebookScale {
  readonly scale: number;
  readonly step: number;
}

function codebookScale(entries: Float32Array, level: IntegerLevel): CodebookScale {
  const limit = CODEBOOK_LIMIT[level];
  const largest = entries.reduce((most, entry) => Math.max(most, Math.abs(entry)), 0);
  if (largest === 0) return { scale: 1, step: 1 };
  const exact = exactScale(entries, largest, limit);
  if (exact !== null) return { scale: exact, step: 1 / exact };
  return level === "int8" ? fitScale(entries, largest, limit) : { scale: limit / largest, step: 1 / (limit / largest) };
}

function exactScale(entries: Float32Array, largest: number, limit: number): number | null {
  let scale = 1;
  while (largest * scale * 2 <= limit) scale *= 2;
  while (largest * scale > limit) scale /= 2;
  if (!areWhole(entries, scale)) return null;
  while (areWhole(entries, scale / 2)) scale /= 2;
  return scale;
}

/**
 * The scale, of those that make the largest entry one of the whole numbers from half the limit up to the limit, with the least
 * squares of what rounding changes in weights, and the step that is best with it: entries lie where they lie, and some scales
 * are near multiples of most of them. native/prepared_weights.cc does the same, operation by operation.
 */
function fitScale(entries: Float32Array, largest: number, limit: number): CodebookScale {
  const weights = entryWeights(entries, largest);
  let best = { scale: 0, step: 0 };
  let least = Number.POSITIVE_INFINITY;
  for (let level = (limit + 1) / 2; level <= limit; level++) {
    const scale = level / largest;
    let [products, squares] = [0, 0];
    for (const [i, entry] of entries.entries()) {
      const code = roundHalfEven(entry * scale);
      products += (weights[i] ?? 0) * entry * code;
      squares += (weights[i] ?? 0) * code * code;
    }
    const step = products / squares;
    let error = 0;
    for (const [i, entry] of entries.entries()) {
      const rest = entry - roundHalfEven(entry * scale) * step;
      error += (weights[i] ?? 0) * rest * rest;
    }
    if (error < least) {
      least = error;
      best = { scale, step };
    }
  }
  return best;
}

/**
 * About how many of a block's weights have each entry: normal numbers over the largest magnitude of 64 of them, which itself
 * is one of the two ends. (1 - v^2)^3 is near the density of the others.
 */
function entryWeights(entries: Float32Array, largest: number): number[] {
  return [...entries].map((entry) => {
    let [below, above] = [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
    for (const other of entries) {
      if (other < entry) below = Math.max(below, other);
      if (other > entry) above = Math.min(above, other);
    }
    const from = Number.isFinite(below) ? (below + entry) / 2 : entry;
    const to = Number.isFinite(above) ? (entry + above) / 2 : entry;
    const share = entry / largest;
    const density = 1 - share * share;
    const isEnd = !(Number.isFinite(below) && Number.isFinite(above));
    return (to - from) * density * density * density + (isEnd ? largest / 128 : 0);
  });
}

function areWhole(entries: Float32Array, scale: number): boolean {
  return entries.every((entry) => Number.isInteger(entry * scale));
}

/** Rounds a block of activations as a level does. */
export function roundActivations(x: Float32Array, codes: Int32Array, limit: number, level: IntegerLevel): number {
  return roundBlock(x, codes, limit, STEPS_ARE_POWERS_OF_TWO[level] ? powerOfTwoFrom : undefined);
}

/** The smallest power of two that is not below a normal number. */
function powerOfTwoFrom(value: number): number {
  const power = 2 ** Math.floor(Math.log2(value));
  // Logarithms may be off by a little.
  return [power / 2, power, power * 2].find((each) => each >= value) ?? power * 4;
}

/**
 * Rounds a block of activations, or a key or a value of a KV cache, to `codes`, as many as there are numbers, and returns
 * their step: the largest magnitude / limit, or what `stepFrom` makes of that, whose reciprocal must be exact. A block that holds NaN or infinity has NaN for a step and zeros for codes.
 */
export function roundBlock(
  x: Float32Array,
  codes: Int32Array | Int8Array,
  limit: number,
  stepFrom?: (step: number) => number,
): number {
  codes.fill(0);
  if (!x.every(Number.isFinite)) return Number.NaN;
  const largest = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (largest < LEAST_MAGNITUDE) return 0;
  const exact = fround(largest / limit);
  const step = stepFrom?.(exact) ?? exact;
  const inverse = stepFrom === undefined ? fround(limit / largest) : 1 / step;
  for (let i = 0; i < x.length; i++) codes[i] = roundHalfEven(fround((x[i] ?? 0) * inverse));
  return step;
}

/** To the nearest whole number, of two the even one. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
