/**
 * The quant state of a 4-bit weight: UTF-8 JSON in a u8 tensor, named for the type (`X.weight.quant_state.bitsandbytes__nf4`).
 * Source: QuantState.as_dict and from_dict of bitsandbytes/functional.py.
 */
import { type CheckpointTensor, describeValue, isJsonObject, type JsonObject, type JsonValue } from "shardloom/plugin";
import { invalid } from "./checkpoint-error.js";
import { type FourBitType, isFourBitType } from "./codebooks.js";

/** What follows the name of the weight, up to the type. */
export const STATE_PREFIX = "quant_state.bitsandbytes__";

/** Real ones have less than 200 bytes. */
export const MAX_STATE_BYTES = 4096;

export const MIN_BLOCK = 32;
export const MAX_BLOCK = 4096;

/** Absmax values to one nested absmax, in everything that bitsandbytes writes. */
export const NESTED_BLOCK = 256;

const DTYPES = ["float16", "bfloat16", "float32"] as const;

/** dtype of a weight before it was quantized, in torch's words. */
export type OriginalDType = (typeof DTYPES)[number];

/** Double quantization: absmax is stored as 8-bit codes with an absmax of their own, less their mean. */
export interface NestedState {
  readonly blockSize: number;
  /** f32; the mean that was subtracted before. */
  readonly offset: number;
}

export interface QuantState {
  readonly type: FourBitType;
  /** Elements to one absmax, counted through the whole tensor. */
  readonly blockSize: number;
  readonly dtype: OriginalDType;
  readonly shape: readonly number[];
  readonly nested: NestedState | null;
}

export function isBlockSize(value: unknown): value is number {
  return typeof value === "number" && value >= MIN_BLOCK && value <= MAX_BLOCK && Number.isInteger(Math.log2(value));
}

/**
 * Reads the state from its bytes. `tensor` is the one that holds them and ends in the type. Throws CheckpointError
 * `INVALID_QUANT_STATE`, naming it.
 */
export function parseQuantState(bytes: Uint8Array, tensor: CheckpointTensor): QuantState {
  const state = parseJson(bytes, tensor);
  const wrong = (key: string, expected: string): never => {
    throw invalid("INVALID_QUANT_STATE", tensor, `${key} to be ${expected}`, describeValue(state[key]));
  };
  const { quant_type: type, blocksize: blockSize, dtype, shape } = state;
  if (!isFourBitType(type)) return wrong("quant_type", "nf4 or fp4");
  if (!tensor.name.endsWith(`${STATE_PREFIX}${type}`)) return wrong("quant_type", "what the tensor's name ends in");
  if (!isBlockSize(blockSize)) return wrong("blocksize", `a power of two from ${MIN_BLOCK} to ${MAX_BLOCK}`);
  const original = DTYPES.find((known) => known === dtype);
  if (original === undefined) return wrong("dtype", DTYPES.join(", "));
  if (!isShape(shape)) return wrong("shape", "a list of positive whole numbers whose product is below 2^53");
  return { type, blockSize, dtype: original, shape, nested: parseNested(state, wrong) };
}

function parseNested(state: JsonObject, wrong: (key: string, expected: string) => never): NestedState | null {
  const { nested_blocksize: blockSize, nested_dtype: dtype, nested_offset: offset } = state;
  if (blockSize === undefined && dtype === undefined && offset === undefined) return null;
  if (!isBlockSize(blockSize)) return wrong("nested_blocksize", `a power of two from ${MIN_BLOCK} to ${MAX_BLOCK}`);
  if (dtype !== "float32") return wrong("nested_dtype", "float32");
  if (typeof offset !== "number" || !Number.isFinite(Math.fround(offset))) return wrong("nested_offset", "a number");
  return { blockSize, offset: Math.fround(offset) };
}

function isShape(value: JsonValue | undefined): value is number[] {
  if (!Array.isArray(value) || value.length === 0) return false;
  let elements = 1;
  for (const extent of value) {
    if (typeof extent !== "number" || !Number.isSafeInteger(extent) || extent < 1) return false;
    elements *= extent;
  }
  return Number.isSafeInteger(elements);
}

function parseJson(bytes: Uint8Array, tensor: CheckpointTensor): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw invalid("INVALID_QUANT_STATE", tensor, "JSON in UTF-8", reason, cause);
  }
  if (!isJsonObject(value)) throw invalid("INVALID_QUANT_STATE", tensor, "a JSON object", describeValue(value));
  return value;
}

/** The bytes that bitsandbytes writes for a state, to the byte. */
export function formatQuantState(state: QuantState): Uint8Array {
  const { type, blockSize, dtype, shape, nested } = state;
  const fields = [
    `"quant_type": "${type}"`,
    `"blocksize": ${blockSize}`,
    `"dtype": "${dtype}"`,
    `"shape": [${shape.join(", ")}]`,
  ];
  if (nested !== null) {
    fields.push(
      `"nested_blocksize": ${nested.blockSize}`,
      `"nested_dtype": "float32"`,
      `"nested_offset": ${formatFloat(nested.offset)}`,
    );
  }
  return new TextEncoder().encode(`{${fields.join(", ")}}`);
}

/** A float as Python's repr writes it: the shortest digits that read back the same, an exponent of two digits at least. */
export function formatFloat(value: number): string {
  const [digits = "0", power = "0"] = value.toExponential().split("e");
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${digits}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  const text = Object.is(value, -0) ? "-0" : String(value);
  return text.includes(".") ? text : `${text}.0`;
}
