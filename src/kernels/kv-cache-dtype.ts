/**
 * What a KV cache holds keys and values in: floats, or 8-bit codes with one scale for each key and each value of a KV head.
 *
 * The rule of `int8`, the same bits on every instruction set: `scale = largest / 127` where largest is the largest magnitude
 * of the head's elements, and a code is `x * (127 / largest)`, each operation rounded to f32, to the nearest whole number,
 * ties to even. NaN or infinity anywhere makes the scale NaN and all codes 0, so that whatever attends to it is NaN; a
 * largest magnitude below 2^-100 counts as zeros.
 */
import { type DType, dtypeBytes } from "../core/dtype.js";
import { describeValue, OptionError } from "../core/errors.js";

export const KV_CACHE_DTYPES = ["f32", "bf16", "f16", "int8"] as const;
export type KvCacheDType = (typeof KV_CACHE_DTYPES)[number];

/** Throws OptionError `INVALID_OPTION`. */
export function checkKvCacheDtype(value: unknown): KvCacheDType {
  const dtype = KV_CACHE_DTYPES.find((each) => each === value);
  if (dtype !== undefined) return dtype;
  throw new OptionError(
    "INVALID_OPTION",
    `expected kvCacheDtype to be f32, bf16, f16 or int8 but received ${describeValue(value)}`,
    { option: "kvCacheDtype", expected: KV_CACHE_DTYPES.join("|"), received: String(value) },
  );
}

/** Element type of the tensors of keys and values. */
export function kvElementDtype(dtype: KvCacheDType): DType {
  return dtype === "int8" ? "i8" : dtype;
}

/** Bytes of the key and the value of one KV head at one position, scales included. */
export function kvPositionBytes(dtype: KvCacheDType, headSize: number): number {
  const scaleBytes = dtype === "int8" ? dtypeBytes("f32") : 0;
  return 2 * (headSize * dtypeBytes(kvElementDtype(dtype)) + scaleBytes);
}

/** Largest magnitude of a code of `int8`: those of a key or a value are what `roundBlock` (activation-levels.ts) makes of it. */
export const KV_CODE_LIMIT = 127;
