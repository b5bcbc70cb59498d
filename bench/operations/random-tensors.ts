/** Tensors with made-up values, each in memory of its own as a layer's weights are. */

import { Arena } from "../../src/core/arena.js";
import { type DType, dtypeBytes, type FloatDType, f32ToBf16, f32ToF16 } from "../../src/core/dtype.js";
import { bytesOf, elementCount, f32Of, i32Of, type Tensor, u16Of } from "../../src/core/tensor.js";
import type { Random } from "../models/weight-types.js";

/** Values made once and repeated; prime, so that rows are not alike. */
const PERIOD = 65_521;

export function zeros(dtype: DType, shape: readonly number[]): Tensor {
  const bytes = elementCount(shape) * dtypeBytes(dtype);
  return Arena.create("bench", bytes).allocate("bench", dtype, shape);
}

/** Uniform in `[-amplitude, amplitude)`. */
export function floats(dtype: FloatDType, shape: readonly number[], amplitude: number, random: Random): Tensor {
  const tensor = zeros(dtype, shape);
  const values = Array.from({ length: PERIOD }, () => (2 * random() - 1) * amplitude);
  if (dtype === "f32") repeat(f32Of(tensor), values);
  else repeat(u16Of(tensor), values.map(dtype === "bf16" ? f32ToBf16 : f32ToF16));
  return tensor;
}

/** Any bytes. */
export function codes(dtype: "u8" | "i8", shape: readonly number[], random: Random): Tensor {
  const tensor = zeros(dtype, shape);
  repeat(
    bytesOf(tensor),
    Array.from({ length: PERIOD }, () => Math.floor(random() * 256)),
  );
  return tensor;
}

export function integers(shape: readonly number[], values: readonly number[]): Tensor {
  const tensor = zeros("i32", shape);
  i32Of(tensor).set(values);
  return tensor;
}

function repeat(target: Float32Array | Uint16Array | Uint8Array, values: readonly number[]): void {
  target.set(values.slice(0, target.length));
  for (let done = Math.min(values.length, target.length); done < target.length; done *= 2) {
    target.copyWithin(done, 0, Math.min(done, target.length - done));
  }
}
