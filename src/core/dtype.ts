import { CheckpointError, InternalError } from "./errors.js";

/** Element types of tensors, by the names that safetensors uses in lower case. */
export type DType = "f32" | "f16" | "bf16" | "i8" | "u8" | "i32" | "i64" | "f8_e4m3";

/** Element types that hold real numbers and may be converted into one another. */
export type FloatDType = "f32" | "f16" | "bf16";

const sizes: Readonly<Record<DType, number>> = { f32: 4, f16: 2, bf16: 2, i8: 1, u8: 1, i32: 4, i64: 8, f8_e4m3: 1 };

export const DTYPES: readonly DType[] = Object.keys(sizes).filter(isDType);

export function isDType(name: string): name is DType {
  return Object.hasOwn(sizes, name);
}

export function isFloat(dtype: DType): dtype is FloatDType {
  return dtype === "f32" || dtype === "f16" || dtype === "bf16";
}

/** Bytes of one element. */
export function dtypeBytes(dtype: DType): number {
  return sizes[dtype];
}

const scratch = new DataView(new ArrayBuffer(4));

/** The bits of a binary32 value. */
export function f32ToBits(value: number): number {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

/** The binary32 value of 32 bits. */
export function bitsToF32(bits: number): number {
  scratch.setUint32(0, bits);
  return scratch.getFloat32(0);
}

/** The value of bfloat16 bits; exact. */
export function bf16ToF32(bits: number): number {
  return bitsToF32(((bits & 0xffff) << 16) >>> 0);
}

/** bfloat16 bits nearest to a binary32 value, ties to even. NaN stays a quiet NaN. */
export function f32ToBf16(value: number): number {
  const bits = f32ToBits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The value of IEEE binary16 bits; exact. */
export function f16ToF32(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** IEEE binary16 bits nearest to a binary32 value, ties to even; beyond the range, infinity. */
export function f32ToF16(value: number): number {
  const bits = f32ToBits(value);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Subnormal result: the multiple of 2^-24 nearest to |value|, ties to even.
    const scaled = Math.abs(value) * 2 ** 24;
    const floor = Math.floor(scaled);
    const rest = scaled - floor;
    const rounded = rest > 0.5 || (rest === 0.5 && (floor & 1) === 1) ? floor + 1 : floor;
    return sign | rounded;
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

const PATTERNS = 1 << 16;

/** f32 values of all 65,536 bit patterns of a 16-bit dtype, made when they are first asked for. */
const widened: { bf16?: Float32Array; f16?: Float32Array } = {};

/** Table of the f32 values of all bit patterns of a 16-bit dtype: the fastest way to widen many of them. */
export function widenTable(dtype: "bf16" | "f16"): Float32Array {
  const table = widened[dtype] ?? (dtype === "bf16" ? widenedBf16() : widenedF16());
  widened[dtype] = table;
  return table;
}

/** bfloat16 is the upper half of binary32. */
function widenedBf16(): Float32Array {
  const table = new Uint32Array(PATTERNS);
  for (let bits = 0; bits < PATTERNS; bits++) table[bits] = bits << 16;
  return new Float32Array(table.buffer);
}

function widenedF16(): Float32Array {
  const table = new Float32Array(PATTERNS);
  for (let bits = 0; bits < PATTERNS; bits++) table[bits] = f16ToF32(bits);
  return table;
}

function bytesToU16(bytes: Uint8Array): Uint16Array {
  return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 1);
}

function bytesToF32(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
}

function reader(source: Uint8Array, dtype: FloatDType): (index: number) => number {
  if (dtype === "f32") {
    const view = bytesToF32(source);
    return (i) => view[i] ?? Number.NaN;
  }
  const view = bytesToU16(source);
  const table = widenTable(dtype);
  return (i) => table[view[i] ?? 0] ?? 0;
}

/**
 * Converts `source` (elements of `from`) into `destination` (elements of `to`), rounding to nearest even. Both must be
 * aligned to their element size and hold the same number of elements.
 *
 * Throws CheckpointError `FLOAT_OVERFLOW` when a finite value would become infinite, naming `tensor`.
 */
export function convertFloats(
  source: Uint8Array,
  from: FloatDType,
  destination: Uint8Array,
  to: FloatDType,
  tensor: string,
): void {
  const count = source.byteLength / sizes[from];
  if (!Number.isInteger(count) || count !== destination.byteLength / sizes[to]) {
    throw new InternalError(
      `convertFloats: ${source.byteLength} bytes of ${from} into ${destination.byteLength} of ${to}`,
    );
  }
  if (from === to) {
    destination.set(source);
    return;
  }
  const read = reader(source, from);
  if (to === "f32") {
    const out = bytesToF32(destination);
    for (let i = 0; i < count; i++) out[i] = read(i);
    return;
  }
  const out = bytesToU16(destination);
  const narrow = to === "bf16" ? f32ToBf16 : f32ToF16;
  const infinity = to === "bf16" ? 0x7f80 : 0x7c00;
  for (let i = 0; i < count; i++) {
    const value = read(i);
    const bits = narrow(value);
    if ((bits & 0x7fff) === infinity && Number.isFinite(value)) {
      throw new CheckpointError(
        "FLOAT_OVERFLOW",
        `${tensor}: expected values that ${to} can hold but element ${i} of the slice is ${value} (${from})`,
        { tensor, expected: to, received: value },
      );
    }
    out[i] = bits;
  }
}
