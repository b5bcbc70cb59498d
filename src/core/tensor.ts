import type { Arena } from "./arena.js";
import { type DType, dtypeBytes } from "./dtype.js";
import { InternalError } from "./errors.js";

/** Row-major elements in an arena. A plain value; `byteOffset` counts from the start of the arena's buffer. */
export interface Tensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly arena: Arena;
  readonly byteOffset: number;
}

/** Product of a shape; 1 for a scalar. */
export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const extent of shape) count *= extent;
  return count;
}

export function tensorBytes(tensor: Pick<Tensor, "dtype" | "shape">): number {
  return elementCount(tensor.shape) * dtypeBytes(tensor.dtype);
}

export function shapesEqual(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((extent, dim) => extent === b[dim]);
}

/** `[64, 128] bf16`, as messages show it. */
export function describeShape(dtype: DType, shape: readonly number[]): string {
  return `[${shape.join(", ")}] ${dtype}`;
}

/** Whether a tensor has a shape and no bytes (Arena.virtual). */
export function isVirtual(tensor: Tensor): boolean {
  return tensor.arena.buffer.byteLength === 0;
}

/** All bytes of a tensor. */
export function bytesOf(tensor: Tensor): Uint8Array {
  expectBytes(tensor);
  return new Uint8Array(tensor.arena.buffer, tensor.byteOffset, tensorBytes(tensor));
}

/** The elements of an f32 tensor. */
export function f32Of(tensor: Tensor): Float32Array {
  expectDType(tensor, "f32");
  expectBytes(tensor);
  return new Float32Array(tensor.arena.buffer, tensor.byteOffset, elementCount(tensor.shape));
}

/** The elements of an i32 tensor. */
export function i32Of(tensor: Tensor): Int32Array {
  expectDType(tensor, "i32");
  expectBytes(tensor);
  return new Int32Array(tensor.arena.buffer, tensor.byteOffset, elementCount(tensor.shape));
}

/** The bit patterns of a bf16 or f16 tensor. */
export function u16Of(tensor: Tensor): Uint16Array {
  if (tensor.dtype !== "bf16" && tensor.dtype !== "f16") expectDType(tensor, "bf16");
  expectBytes(tensor);
  return new Uint16Array(tensor.arena.buffer, tensor.byteOffset, elementCount(tensor.shape));
}

function expectDType(tensor: Tensor, dtype: DType): void {
  if (tensor.dtype !== dtype) {
    throw new InternalError(`expected ${tensor.name} to be ${dtype} but it is ${tensor.dtype}`);
  }
}

function expectBytes(tensor: Tensor): void {
  if (isVirtual(tensor))
    throw new InternalError(`expected the bytes of ${tensor.name} but it is virtual: it has a shape only`);
}
