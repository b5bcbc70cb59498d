/** Layers without files: checkpoint tensors in memory, one context a rank. */
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { ArenaAllocator } from "../../src/core/arena.js";
import { type DType, dtypeBytes, f32ToBf16, f32ToF16 } from "../../src/core/dtype.js";
import { bytesOf, elementCount, f32Of } from "../../src/core/tensor.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { LayerContext } from "../../src/layers/layer-context.js";
import type { Parameter } from "../../src/layers/parameter.js";
import type { QuantizationConfig } from "../../src/quantization/contract.js";
import { unquantized } from "../../src/quantization/unquantized.js";

/** A context of one rank; weights are f32 unless told otherwise. */
export function contextOf(
  rank: number,
  worldSize: number,
  quantization: QuantizationConfig = unquantized,
): LayerContext {
  return new LayerContext({
    rank,
    worldSize,
    kernels: createReferenceKernels(),
    weights: new ArenaAllocator(`test.rank${rank}`, 1024 * 1024),
    quantization,
    dtype: "f32",
  });
}

/** A checkpoint tensor whose elements are given. */
export function tensorOf(
  name: string,
  shape: readonly number[],
  values: readonly number[],
  dtype: DType = "f32",
): CheckpointTensor {
  const bytes = new Uint8Array(elementCount(shape) * dtypeBytes(dtype));
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => {
    if (dtype === "f32") view.setFloat32(i * 4, value, true);
    else if (dtype === "bf16") view.setUint16(i * 2, f32ToBf16(value), true);
    else if (dtype === "f16") view.setUint16(i * 2, f32ToF16(value), true);
    else if (dtype === "i32") view.setInt32(i * 4, value, true);
    else view.setUint8(i, value);
  });
  return {
    name,
    dtype,
    shape,
    file: "memory.safetensors",
    read(destination, byteOffset) {
      destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
    },
  };
}

/** A tensor whose element at row r, column c is r * 1000 + c: a value tells where it came from. */
export function labelled(name: string, rows: number, columns: number): CheckpointTensor {
  const values = Array.from({ length: rows * columns }, (_, i) => Math.floor(i / columns) * 1000 + (i % columns));
  return tensorOf(name, [rows, columns], values);
}

/** The rows of an f32 parameter `[rows, columns]`. */
export function rowsOf(parameter: Parameter): number[][] {
  const [rows = 0, columns = 1] = parameter.tensor.shape;
  const values = [...f32Of(parameter.tensor)];
  return Array.from({ length: rows }, (_, row) => values.slice(row * columns, (row + 1) * columns));
}

/** Row labels of a parameter loaded from `labelled` tensors: which source row each of its rows is. */
export function rowLabels(parameter: Parameter): number[] {
  return rowsOf(parameter).map(([first = 0]) => Math.floor(first / 1000));
}

export function bytesOfParameter(parameter: Parameter): number[] {
  return [...bytesOf(parameter.tensor)];
}

/** Offers a tensor to whoever declared its name. */
export function load(context: LayerContext, ...tensors: CheckpointTensor[]): void {
  for (const tensor of tensors) {
    const targets = context.targets.get(tensor.name);
    if (targets === undefined) throw new Error(`no layer declared ${tensor.name}`);
    for (const target of targets) target.load(tensor);
  }
}

/** The parameter of a name; fails the test if there is none. */
export function parameterOf(context: LayerContext, name: string): Parameter {
  const parameter = context.parameters.find((candidate) => candidate.name === name);
  if (parameter === undefined) throw new Error(`no parameter ${name}`);
  return parameter;
}
