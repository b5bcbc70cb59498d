/** Linear layers at the levels that round activations (activation-levels.ts), in plain TypeScript. */
import { bf16ToF32, f32ToBf16 } from "../core/dtype.js";
import { bytesOf, f32Of } from "../core/tensor.js";
import {
  ACTIVATION_LIMIT,
  type ActivationLevel,
  activationBlock,
  type IntegerLevel,
  roundActivations,
  roundCodebook,
  takesBf16,
} from "./activation-levels.js";
import { blockValueReader, MIN_BLOCK_SIZE, rowReader, weightExtents } from "./execution-format.js";
import type { Code4Weight, DenseWeight, Int8Weight, LinearWeight } from "./kernels.js";

const { fround } = Math;

/** Where results go: column `firstColumn + n` of row m is `values[m * stride + firstColumn + n]`. */
export interface OutputColumns {
  readonly values: Float32Array;
  readonly stride: number;
  readonly firstColumn: number;
}

/** Multiplies the first `rows` rows of x with a weight. */
export type RoundedLinear = (out: OutputColumns, x: Float32Array, bias: Float32Array | null, rows: number) => void;

/** A weight in whole numbers. */
interface RoundedWeight {
  /** Writes the numbers of a row. */
  readonly read: (row: number, out: Int32Array) => void;
  /** What the numbers are to be multiplied with beside their scale. */
  readonly factor: number;
}

/** The product with a weight at a level, or null where only f32 will do. */
export function roundedLinear(weight: LinearWeight, level: Exclude<ActivationLevel, "f32">): RoundedLinear | null {
  if (weight.format === "prepared") return null;
  if (weight.format === "dense") return level === "bf16" && takesBf16(weight) ? bf16Linear(weight) : null;
  return level === "bf16" ? null : integerLinear(weight, level);
}

/** Products of what is rounded to bf16, added in f64. */
function bf16Linear(weight: DenseWeight): RoundedLinear {
  const { outputs, inputs } = weightExtents(weight);
  const read = rowReader(weight);
  return (out, x, bias, rows) => {
    const rounded = x.slice(0, rows * inputs).map((value) => bf16ToF32(f32ToBf16(value)));
    const row = new Float32Array(inputs);
    for (let n = 0; n < outputs; n++) {
      read(n, row);
      const column = out.firstColumn + n;
      for (let m = 0; m < rows; m++) {
        let sum = 0;
        for (let k = 0; k < inputs; k++) sum += (rounded[m * inputs + k] ?? 0) * (row[k] ?? 0);
        out.values[m * out.stride + column] = bias === null ? sum : sum + (bias[column] ?? 0);
      }
    }
  };
}

function integerLinear(weight: Code4Weight | Int8Weight, level: IntegerLevel): RoundedLinear | null {
  const { outputs, inputs } = weightExtents(weight);
  if (weight.blockSize % MIN_BLOCK_SIZE !== 0) return null;
  const rounded = weight.format === "code4" ? roundedCode4(weight, inputs, level) : roundedInt8(weight, inputs);
  if (rounded === null) return null;
  const block = activationBlock(weight.blockSize);
  const limit = ACTIVATION_LIMIT[weight.format][level];
  return (out, x, bias, rows) => {
    const codes = new Int32Array(inputs);
    for (let m = 0; m < rows; m++) {
      const steps = roundRow(x.subarray(m * inputs, (m + 1) * inputs), codes, block, { limit, level });
      for (let n = 0; n < outputs; n++) {
        const sum = dotRow(weight, rounded, n, codes, steps, block);
        const column = out.firstColumn + n;
        out.values[m * out.stride + column] = bias === null ? sum : sum + (bias[column] ?? 0);
      }
    }
  };
}

function roundRow(
  x: Float32Array,
  codes: Int32Array,
  block: number,
  { limit, level }: { readonly limit: number; readonly level: IntegerLevel },
): Float32Array {
  const steps = new Float32Array(x.length / block);
  for (let b = 0; b < steps.length; b++) {
    const [start, end] = [b * block, (b + 1) * block];
    steps[b] = roundActivations(x.subarray(start, end), codes.subarray(start, end), limit, level);
  }
  return steps;
}

/** One element, its blocks added in f64. */
function dotRow(
  { scales, minimums, blockSize }: Code4Weight | Int8Weight,
  { read, factor }: RoundedWeight,
  row: number,
  codes: Int32Array,
  steps: Float32Array,
  block: number,
): number {
  const weights = new Int32Array(codes.length);
  read(row, weights);
  const blocks = codes.length / blockSize;
  const scaleOf = blockValueReader(scales.tensor);
  const minimumOf = minimums === null ? null : blockValueReader(minimums.tensor);
  let total = 0;
  for (const [b, step] of steps.entries()) {
    let [dot, sum] = [0, 0];
    for (let k = b * block; k < (b + 1) * block; k++) {
      dot += (codes[k] ?? 0) * (weights[k] ?? 0);
      sum += codes[k] ?? 0;
    }
    const at = row * blocks + Math.floor((b * block) / blockSize);
    total += fround(dot) * fround(fround(step * factor) * scaleOf(at));
    if (minimumOf !== null) total += fround(sum * step) * minimumOf(at);
  }
  return total;
}

function roundedCode4(weight: Code4Weight, inputs: number, level: IntegerLevel): RoundedWeight | null {
  // A codebook that one level cannot take stays in f32 at the other, too.
  const codebook = f32Of(weight.codebook.tensor);
  const both = { int16: roundCodebook(codebook, "int16"), int8: roundCodebook(codebook, "int8") };
  if (both.int16 === null || both.int8 === null) return null;
  const { codes: entries, step } = level === "int16" ? both.int16 : both.int8;
  const bytes = bytesOf(weight.codes.tensor);
  return {
    factor: step,
    read(row, out) {
      for (let k = 0; k < inputs; k++) {
        const byte = bytes[(row * inputs + k) >>> 1] ?? 0;
        out[k] = entries[(k & 1) === 0 ? byte >>> 4 : byte & 15] ?? 0;
      }
    },
  };
}

function roundedInt8(weight: Int8Weight, inputs: number): RoundedWeight {
  const bytes = bytesOf(weight.codes.tensor);
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  return {
    factor: fround(weight.multiplier),
    read: (row, out) => out.set(codes.subarray(row * inputs, (row + 1) * inputs)),
  };
}
