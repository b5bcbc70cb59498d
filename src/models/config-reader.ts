/** Checked access to config.json: every value is of the type and in the range a model can use, or the error says what it is. */
import { type FloatDType, isFloat } from "../core/dtype.js";
import { CheckpointError, describeValue, UnsupportedError } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";

/** No dimension of a model is larger: products of two stay exact. */
const MAX_DIMENSION = 2 ** 26;

export class ConfigReader {
  readonly #json: JsonObject;
  readonly #path: string;

  constructor(json: JsonObject, path = "config.json") {
    this.#json = json;
    this.#path = path;
  }

  /** The value of a key; null and absent are the same. */
  get(key: string): JsonValue {
    return Object.hasOwn(this.#json, key) ? (this.#json[key] ?? null) : null;
  }

  has(key: string): boolean {
    return this.get(key) !== null;
  }

  /** A whole number from 1 to 2^26. */
  size(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback ?? null;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 1 || value > MAX_DIMENSION) {
      throw this.invalid(key, `a whole number from 1 to ${MAX_DIMENSION}`, value);
    }
    return value;
  }

  /** A finite number above 0. */
  positive(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback ?? null;
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
      throw this.invalid(key, "a number above 0", value);
    return value;
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value !== "boolean") throw this.invalid(key, "true or false", value);
    return value;
  }

  string(key: string, fallback?: string): string {
    const value = this.get(key) ?? fallback ?? null;
    if (typeof value !== "string") throw this.invalid(key, "a string", value);
    return value;
  }

  /** A nested object; null if absent. */
  object(key: string): ConfigReader | null {
    const value = this.get(key);
    if (value === null) return null;
    if (!isJsonObject(value)) throw this.invalid(key, "an object", value);
    return new ConfigReader(value, `${this.#path}: ${key}`);
  }

  /** Token ids: a number, a list of numbers, or none. */
  tokenIds(key: string): readonly number[] {
    const value = this.get(key);
    if (value === null) return [];
    const ids = Array.isArray(value) ? value : [value];
    return ids.map((id) => {
      if (typeof id !== "number" || !Number.isInteger(id) || id < 0) throw this.invalid(key, "token ids", value);
      return id;
    });
  }

  /** `dtype` (transformers 5) or `torch_dtype` (4). bf16 where the config says nothing. */
  dtype(): FloatDType {
    const key = this.has("dtype") ? "dtype" : "torch_dtype";
    const name = this.string(key, "bfloat16").replace(/^torch\./, "");
    const dtype = { float32: "f32", float16: "f16", bfloat16: "bf16" }[name];
    if (dtype !== "f32" && dtype !== "f16" && dtype !== "bf16")
      throw this.invalid(key, "float32, float16 or bfloat16", name);
    return isFloat(dtype) ? dtype : "bf16";
  }

  /** Throws UnsupportedError `UNSUPPORTED_CONFIG` unless a feature has the one value that is implemented. */
  require(key: string, supported: JsonValue, fallback: JsonValue = supported): void {
    const value = this.get(key) ?? fallback;
    if (value === supported) return;
    throw new UnsupportedError(
      "UNSUPPORTED_CONFIG",
      `${this.#path}: ${key}: expected ${JSON.stringify(supported)}, the only value supported, but received ${JSON.stringify(value)}`,
      { file: this.#path, option: key, expected: JSON.stringify(supported), received: JSON.stringify(value) },
    );
  }

  invalid(key: string, expected: string, value: unknown): CheckpointError {
    const received = describeValue(value);
    return new CheckpointError(
      "INVALID_CONFIG",
      `${this.#path}: expected ${key} to be ${expected} but received ${received}`,
      {
        file: this.#path,
        option: key,
        expected,
        received,
      },
    );
  }
}
