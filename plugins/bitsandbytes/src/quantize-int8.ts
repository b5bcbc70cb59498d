/**
 * Quantization to LLM.int8 (Dettmers et al. 2022), byte for byte as bitsandbytes 0.50 does it on a CPU: rows are rounded to
 * f16 and scaled by their largest magnitude, the row's SCB.
 */
import { CheckpointError } from "shardloom/plugin";
import { roundToF16, roundToInteger } from "./rounding.js";

const { fround } = Math;

/** f32 of 1 / 127, what a code times its row's SCB is multiplied by. */
export const INT8_MULTIPLIER: number = fround(1 / 127);

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
    const scale = roundRow(values, row * columns, columns, tensor, firstRow);
    scales[row] = scale;
    if (scale === 0) {
      codes.fill(0, row * columns, (row + 1) * columns);
      continue;
    }
    // torch computes 127 / scale as a reciprocal times 127.
    const factor = fround(fround(1 / scale) * 127);
    for (let i = row * columns; i < (row + 1) * columns; i++) {
      codes[i] = roundToInteger(fround((values[i] ?? 0) * factor));
    }
  }
}

/** Rounds one row to f16 and returns its largest magnitude. */
function roundRow(values: Float32Array, start: number, columns: number, tensor: string, firstRow: number): number {
  let largest = 0;
  let poison = 0;
  for (let i = start; i < start + columns; i++) {
    const value = roundToF16(values[i] ?? 0);
    const magnitude = value < 0 ? -value : value;
    poison += value * 0;
    if (magnitude > largest) largest = magnitude;
    // What was finite stays readable for the message.
    if (magnitude < Number.POSITIVE_INFINITY) values[i] = value;
  }
  if (poison === 0) return largest;
  const at = values.findIndex((value, i) => i >= start && !Number.isFinite(roundToF16(value)));
  const received = values[at] ?? 0;
  const code = Number.isFinite(received) ? "FLOAT_OVERFLOW" : "NON_FINITE_WEIGHT";
  const element = firstRow * columns + at;
  throw new CheckpointError(
    code,
    `${tensor}: expected values that f16 can hold, to be quantized to int8, but element ${element} is ${received}`,
    { tensor, expected: "f16", received: String(received) },
  );
}
