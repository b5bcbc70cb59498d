/** Tensors for kernel tests: each in memory of its own that ends where the tensor ends, filled from a seed. */
import assert from "node:assert/strict";
import { Arena } from "../../src/core/arena.js";
import {
  bf16ToF32,
  type DType,
  dtypeBytes,
  type FloatDType,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
} from "../../src/core/dtype.js";
import { type NativeAddon, nativeAddon } from "../../src/core/native-addon.js";
import type { Operand } from "../../src/core/operand.js";
import { elementCount, f32Of, i32Of, type Tensor, u16Of } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { createNativeKernels } from "../../src/kernels/native.js";

/** Multiples of the 16 bytes that allocators align to. */
const PADS = [0, 16, 32, 48] as const;

/** The addon these tests are about. Throws when there is none: a test that silently runs nothing protects nothing. */
export function loadedAddon(): NativeAddon {
  const native = nativeAddon();
  if (!native.loaded) throw new Error(`the native addon is needed for this test: ${native.reason}`);
  return native.addon;
}

/**
 * A zeroed tensor whose last byte is, where the allocator permits it, the last of its buffer, so that the address
 * sanitizer notices a read beyond it.
 */
export function zeros(dtype: DType, shape: readonly number[], name = "tensor"): Tensor {
  const native = nativeAddon();
  // A buffer of no bytes would make the tensor a virtual one.
  const sizeBytes = Math.max(1, elementCount(shape) * dtypeBytes(dtype));
  const place = (buffer: SharedArrayBuffer, base: number): Tensor => {
    const arena = Arena.from({ name, buffer, base, capacity: buffer.byteLength - base });
    return { name, dtype, shape, arena, byteOffset: base };
  };
  if (!native.loaded) return place(new SharedArrayBuffer(sizeBytes), 0);
  for (const pad of PADS) {
    const buffer = new SharedArrayBuffer(pad + sizeBytes);
    if ((native.addon.addressModulo(new Uint8Array(buffer), 64) + pad) % 64 === 0) return place(buffer, pad);
  }
  const buffer = new SharedArrayBuffer(sizeBytes + 64);
  return place(buffer, (64 - native.addon.addressModulo(new Uint8Array(buffer), 64)) % 64);
}

/** Elements of a tensor as numbers. */
export function numbersOf(tensor: Tensor): number[] {
  if (tensor.dtype === "f32") return [...f32Of(tensor)];
  if (tensor.dtype === "i32") return [...i32Of(tensor)];
  if (tensor.dtype === "i8") return bitsOf(tensor);
  return [...u16Of(tensor)].map(tensor.dtype === "bf16" ? bf16ToF32 : f16ToF32);
}

/** Bit patterns of a tensor, for comparisons that no rounding may escape. */
export function bitsOf(tensor: Tensor): number[] {
  if (tensor.dtype === "bf16" || tensor.dtype === "f16") return [...u16Of(tensor)];
  if (tensor.dtype === "i8")
    return [...new Int8Array(tensor.arena.buffer, tensor.byteOffset, elementCount(tensor.shape))];
  return [...new Uint32Array(tensor.arena.buffer, tensor.byteOffset, elementCount(tensor.shape))];
}

/** A float tensor that holds `values`, rounded to its dtype. */
export function floats(dtype: FloatDType, shape: readonly number[], values: Iterable<number>, name?: string): Tensor {
  const tensor = zeros(dtype, shape, name);
  if (dtype === "f32") {
    f32Of(tensor).set([...values]);
    return tensor;
  }
  const narrow = dtype === "bf16" ? f32ToBf16 : f32ToF16;
  u16Of(tensor).set([...values].map((value) => narrow(Math.fround(value))));
  return tensor;
}

export function integers(shape: readonly number[], values: Iterable<number>, name?: string): Tensor {
  const tensor = zeros("i32", shape, name);
  i32Of(tensor).set([...values]);
  return tensor;
}

/** Numbers in [-1, 1) that follow from a seed. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Next number in [-1, 1). Mulberry32. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  }

  /** Whole number in [0, limit). */
  below(limit: number): number {
    return Math.floor(((this.next() + 1) / 2) * limit);
  }

  floats(dtype: FloatDType, shape: readonly number[], scale = 1, name?: string): Tensor {
    return floats(
      dtype,
      shape,
      Array.from({ length: elementCount(shape) }, () => this.next() * scale),
      name,
    );
  }

  /** `[0, count)` in some order. */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j] ?? 0, order[i] ?? 0];
    }
    return order;
  }
}

/** Calls `use` with operands that live as long as the call. */
export function scoped(kernels: Kernels, use: (bind: (tensor: Tensor) => Operand) => void): void {
  const operands: Operand[] = [];
  try {
    use((tensor) => {
      const operand = kernels.bind(tensor);
      operands.push(operand);
      return operand;
    });
  } finally {
    for (const operand of operands) kernels.release(operand);
  }
}

/** Declares the same tests for every instruction set of this machine. */
export function forEachIsa(declare: (kernels: Kernels, isa: string) => void): void {
  const addon = loadedAddon();
  const kernels = createNativeKernels();
  for (const isa of addon.supportedIsas) {
    describe(isa, () => {
      before(() => addon.selectIsa(isa));
      after(() => addon.selectIsa(addon.supportedIsas[0] ?? isa));
      declare(kernels, isa);
    });
  }
}

/** Fails unless every element of `actual` is within `tolerance` of that of `expected`; NaN and infinities must match. */
export function assertClose(
  actual: Tensor,
  expected: Tensor,
  tolerance: (index: number, value: number) => number,
): void {
  const [received, wanted] = [numbersOf(actual), numbersOf(expected)];
  assert.equal(received.length, wanted.length);
  for (const [index, value] of wanted.entries()) {
    const got = received[index] ?? Number.NaN;
    if (Object.is(got, value)) continue;
    const allowed = tolerance(index, value);
    assert.ok(
      Math.abs(got - value) <= allowed,
      `element ${index}: expected ${value} within ${allowed}, received ${got}`,
    );
  }
}
