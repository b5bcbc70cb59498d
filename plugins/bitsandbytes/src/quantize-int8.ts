/**
 * Quantization to LLM.int8 (Dettmers et al. 2022), byte for byte as bitsandbytes 0.50 does it on a CPU: rows are rounded to
 * f16 and scaled by their largest magnitude, the row's SCB.
 */
import { CheckpointError } from "shardloom/plugin";
import { roundAllToF16, roundToF16, roundToInteger } from "./rounding.js";

const { fround } = Math;

/** f32 of 1 / 127, what a code times its row's SCB is multiplied by. */
export const INT8_MULTIPLIER: number = fround(1 / 127);

/** Bits of 65520, from which on f16 is infinite. */
const OVERFLOW_BITS = 0x477ff000;
const MAGNITUDE_BITS = 0x7fffffff;

const float = new Float32Array(1);
const floatBits = new Int32Array(float.buffer);

/**
 * Quantizes whole rows of `columns` elements: i8 codes and one f32 scale a row. `values` are rounded to f16 in place; row
 * `firstRow` of `tensor` is the first. Throws CheckpointError `FLOAT_OVERFLOW` for a value beyond f16's range,
 * `NON_FINITE_WEIGHT` for infinities and NaN.
 */
export function quantizeRows(
  values: Float32Array,
  columns: number,
  codes: Int8Array,
  scales: Float32Array,
  tensor: string,
  firstRow: number,
): void {
  for (let row = 0; row * columns < values.length; row++) {
    const start = row * columns;
    const end = start + columns;
    const largest = largestBits(values, start, end);
    if (largest >= OVERFLOW_BITS) throw refused(values, start, tensor, firstRow * columns);
    roundAllToF16(values, start, end);
    floatBits[0] = largest;
    // Rounding keeps the order, so the largest stays the largest.
    const scale = roundToF16(float[0] ?? 0);
    scales[row] = scale;
    // torch computes 127 / scale as a reciprocal times 127.
    const factor = scale === 0 ? 0 : fround(fround(1 / scale) * 127);
    for (let i = start; i < end; i++) codes[i] = roundToInteger(fround((values[i] ?? 0) * factor));
  }
}

/** The bits of the largest magnitude; those of NaN are the largest of all. */
function largestBits(values: Float32Array, start: number, end: number): number {
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  let largest = 0;
  for (let i = start; i < end; i++) {
    const magnitude = (bits[i] ?? 0) & MAGNITUDE_BITS;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

function refused(values: Float32Array, start: number, tensor: string, firstElement: number): CheckpointError {
  const at = values.findIndex((value, i) => i >= start && !Number.isFinite(roundToF16(value)));
  const received = values[at] ?? 0;
  return new CheckpointError(
    Number.isFinite(received) ? "FLOAT_OVERFLOW" : "NON_FINITE_WEIGHT",
    `${tensor}: expected values that f16 can hold, to be quantized to int8, but element ${firstElement + at} is ${received}`,
    { tensor, expected: "f16", received: String(received) },
  );
}
