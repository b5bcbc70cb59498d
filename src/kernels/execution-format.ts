/**
 * What a weight in an execution format *is*: its extents and its values, computed here in the order of operations that
 * kernels.ts defines. The reference kernels multiply with these values, and tests compare them with other libraries'.
 */
import { widenTable } from "../core/dtype.js";
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { bytesOf, f32Of, type Tensor, u16Of } from "../core/tensor.js";
import type { Code4Weight, DenseWeight, Int8Weight, LinearWeight } from "./kernels.js";

const { fround } = Math;

/** Rows and columns of a weight. */
export interface WeightExtents {
  readonly outputs: number;
  readonly inputs: number;
}

/** The least block of inputs that a scale may hold for. */
export const MIN_BLOCK_SIZE = 16;

/**
 * Extents of a weight, after checking that its operands belong together. Throws InternalError naming what does not fit:
 * a linear method made it.
 */
export function weightExtents(weight: LinearWeight): WeightExtents {
  if (weight.format === "dense") return { outputs: weight.matrix.rows, inputs: weight.matrix.columns };
  if (weight.format === "prepared") return weightExtents(weight.source);
  const { codes, scales, minimums, blockSize } = weight;
  const extents = { outputs: codes.rows, inputs: weight.format === "code4" ? 2 * codes.columns : codes.columns };
  const whole = weight.format === "int8" && blockSize === extents.inputs;
  const aligned = blockSize >= MIN_BLOCK_SIZE && blockSize % MIN_BLOCK_SIZE === 0 && extents.inputs % blockSize === 0;
  if (!Number.isInteger(blockSize) || !(whole || aligned)) {
    throw unfit(codes, `a block of a multiple of ${MIN_BLOCK_SIZE} that divides ${extents.inputs} inputs`, blockSize);
  }
  expectDType(codes, weight.format === "code4" ? "u8" : "i8");
  const blocks = extents.inputs / blockSize;
  for (const operand of minimums === null ? [scales] : [scales, minimums]) {
    expectDType(operand, scales.tensor.dtype === "f16" ? "f16" : "f32");
    // A vector of one scale a row is a column of them.
    const elements = operand.rows * operand.columns;
    if (elements !== extents.outputs * blocks) throw unfit(operand, `${extents.outputs * blocks} elements`, elements);
  }
  if (weight.format === "code4") {
    expectDType(weight.codebook, "f32");
    const entries = weight.codebook.rows * weight.codebook.columns;
    if (entries !== 16) throw unfit(weight.codebook, "16 entries", entries);
  }
  return extents;
}

/** Writes row `row` of a weight, `[inputs]` f32. */
export type RowReader = (row: number, out: Float32Array) => void;

/**
 * A reader of a weight's rows; bit for bit what the format defines. Throws InternalError as `weightExtents` does, and for
 * a prepared weight, whose bytes only its kernels can read.
 */
export function rowReader(weight: LinearWeight): RowReader {
  const { inputs } = weightExtents(weight);
  switch (weight.format) {
    case "dense":
      return denseRows(weight, inputs);
    case "code4":
      return code4Rows(weight, inputs);
    case "int8":
      return int8Rows(weight, inputs);
    case "prepared":
      throw new InternalError(
        `${weight.source.codes.tensor.name}: expected a weight in the order of its rows but it is prepared: kernels that were made for activations in f32 leave weights as they are`,
      );
  }
}

/** All values of a weight, row-major `[outputs, inputs]` f32. */
export function dequantize(weight: LinearWeight): Float32Array {
  const { outputs, inputs } = weightExtents(weight);
  const read = rowReader(weight);
  const values = new Float32Array(outputs * inputs);
  for (let row = 0; row < outputs; row++) read(row, values.subarray(row * inputs, (row + 1) * inputs));
  return values;
}

function denseRows({ matrix }: DenseWeight, inputs: number): RowReader {
  if (matrix.tensor.dtype === "f32") {
    const values = f32Of(matrix.tensor);
    return (row, out) => out.set(values.subarray(row * inputs, (row + 1) * inputs));
  }
  const bits = u16Of(matrix.tensor);
  const table = widenTable(matrix.tensor.dtype === "bf16" ? "bf16" : "f16");
  return (row, out) => {
    for (let c = 0; c < inputs; c++) out[c] = table[bits[row * inputs + c] ?? 0] ?? 0;
  };
}

function code4Rows(weight: Code4Weight, inputs: number): RowReader {
  const codes = bytesOf(weight.codes.tensor);
  const codebook = f32Of(weight.codebook.tensor);
  const { scale, minimum } = blockValues(weight, inputs);
  return (row, out) => {
    for (let c = 0; c < inputs; c++) {
      const byte = codes[(row * inputs + c) >>> 1] ?? 0;
      const code = (c & 1) === 0 ? byte >>> 4 : byte & 15;
      const value = fround((codebook[code] ?? 0) * scale(row, c));
      out[c] = minimum === null ? value : value + minimum(row, c);
    }
  };
}

function int8Rows(weight: Int8Weight, inputs: number): RowReader {
  const bytes = bytesOf(weight.codes.tensor);
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  const multiplier = fround(weight.multiplier);
  const { scale, minimum } = blockValues(weight, inputs);
  return (row, out) => {
    for (let c = 0; c < inputs; c++) {
      const value = fround(fround((codes[row * inputs + c] ?? 0) * scale(row, c)) * multiplier);
      out[c] = minimum === null ? value : value + minimum(row, c);
    }
  };
}

type BlockValue = (row: number, column: number) => number;

function blockValues(
  { scales, minimums, blockSize }: Code4Weight | Int8Weight,
  inputs: number,
): { readonly scale: BlockValue; readonly minimum: BlockValue | null } {
  const blocks = inputs / blockSize;
  const at = (operand: Operand): BlockValue => {
    const read = blockValueReader(operand.tensor);
    return (row, column) => read(row * blocks + Math.floor(column / blockSize));
  };
  return { scale: at(scales), minimum: minimums === null ? null : at(minimums) };
}

/** Reads elements of scales or minimums, which are f32 or f16. */
export function blockValueReader(tensor: Tensor): (index: number) => number {
  if (tensor.dtype !== "f16") {
    const values = f32Of(tensor);
    return (index) => values[index] ?? 0;
  }
  const bits = u16Of(tensor);
  const table = widenTable("f16");
  return (index) => table[bits[index] ?? 0] ?? 0;
}

function expectDType({ tensor }: Operand, dtype: string): void {
  if (tensor.dtype !== dtype)
    throw new InternalError(`expected ${tensor.name} to be ${dtype} but it is ${tensor.dtype}`);
}

function unfit({ tensor }: Operand, expected: string, received: number): InternalError {
  return new InternalError(`${tensor.name}: expected ${expected} but received ${received}`, { tensor: tensor.name });
}
