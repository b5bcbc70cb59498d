/**
 * Products of LLM.int8: whole-number sums of 8-bit codes, scaled as bitsandbytes' GPU kernels scale them
 * (csrc/kernels.cu: kdequant_mm_int32_fp16), and outlier columns in f16 beside them.
 */
import type { ActivationRows } from "./activation-rows.js";
import { INT8_MULTIPLIER } from "./quantize-int8.js";
import { fusedMultiplyAdd, roundToF16 } from "./rounding.js";

const { fround } = Math;

/** f32 of 1 / (127 * 127). The constant of bitsandbytes' portable path has lost a digit. */
const RESCALE = fround(1 / 16129);

/** Products of codes up to 127 whose sum is sure to fit 32 bits. */
const SUM_RUN = 65_536;

/** Codes and scales of an int8 weight on this rank. */
export interface Int8Matrix {
  /** i8 `[outputs, inputs]` */
  readonly codes: Int8Array;
  /** f32 `[outputs]` (SCB) */
  readonly scales: Float32Array;
  readonly outputs: number;
  readonly inputs: number;
}

/** Sum of the products of row m of the activations' codes and row n of the weight's; exact. */
export function sumOfCodes(
  { codes: a }: ActivationRows,
  m: number,
  { codes: b, inputs }: Int8Matrix,
  n: number,
): number {
  const left = m * inputs;
  const right = n * inputs;
  let total = 0;
  for (let first = 0; first < inputs; first += SUM_RUN) {
    const end = Math.min(first + SUM_RUN, inputs);
    let sum = 0;
    for (let i = first; i < end; i++) sum = (sum + Math.imul(a[left + i] ?? 0, b[right + i] ?? 0)) | 0;
    total += sum;
  }
  return total;
}

/**
 * `sum` plus the products of row m's outliers and their columns of the weight's row n, dequantized and rounded to f16. The
 * order of columns is the order of addition, in f64: ranks that go on from each other's sums get what one rank gets.
 */
export function addOutliers(
  sum: number,
  { outliers, outlierColumns, outlierValues }: ActivationRows,
  m: number,
  { codes, scales, inputs }: Int8Matrix,
  n: number,
): number {
  const scale = scales[n] ?? 0;
  let total = sum;
  for (let j = 0; j < outliers; j++) {
    const code = codes[n * inputs + (outlierColumns[j] ?? 0)] ?? 0;
    const weight = roundToF16(fround(fround(code * scale) * INT8_MULTIPLIER));
    total += (outlierValues[m * outliers + j] ?? 0) * weight;
  }
  return total;
}

/** The f16 value of an output, from the sum of codes, the scales of its row and column, and its bias. */
export function scaleSum(sum: number, rowScale: number, columnScale: number, bias: number): number {
  const scaled = fround(fround(fround(sum) * rowScale) * columnScale);
  return roundToF16(fusedMultiplyAdd(scaled, RESCALE, roundToF16(bias)));
}

/** The f16 value of an output and the products of its outliers. */
export function addToOutput(output: number, outlierSum: number): number {
  return roundToF16(fround(output + outlierSum));
}
