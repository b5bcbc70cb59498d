/**
 * Checked access to config.json: every value is of the type and in the range a model can use, or the error says what it is.
 * Errors are thrown, or told one after the other to whoever wants to know all of them.
 */
import type { FloatDType } from "../core/dtype.js";
import { CheckpointError, describeValue, UnsupportedError } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";

const DTYPES: ReadonlyMap<string, FloatDType> = new Map([
  ["float32", "f32"],
  ["float16", "f16"],
  ["bfloat16", "bf16"],
]);

/** No dimension of a model is larger: products of two stay exact. */
const MAX_DIMENSION = 2 ** 26;

/** Hears of a value that no model can use. If it returns, something harmless stands in for the value. */
export type ConfigComplaint = (error: CheckpointError | UnsupportedError) => void;

const throwIt: ConfigComplaint = (error) => {
  throw error;
};

export class ConfigReader {
  readonly #json: JsonObject;
  readonly #path: string;
  readonly #complain: ConfigComplaint;
  readonly #refused = new Set<string>();

  constructor(json: JsonObject, complain = throwIt, path = "config.json") {
    this.#json = json;
    this.#complain = complain;
    this.#path = path;
  }

  /** Whether the values of these keys, as far as they were asked for, are what they were taken for. */
  accepted(...keys: readonly string[]): boolean {
    return keys.every((key) => !this.#refused.has(key));
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
      this.refuse(key, `a whole number from 1 to ${MAX_DIMENSION}`, value);
      return 1;
    }
    return value;
  }

  /** A finite number above 0. */
  positive(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback ?? null;
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    this.refuse(key, "a number above 0", value);
    return 1;
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value === "boolean") return value;
    this.refuse(key, "true or false", value);
    return fallback;
  }

  string(key: string, fallback?: string): string {
    const value = this.get(key) ?? fallback ?? null;
    if (typeof value === "string") return value;
    this.refuse(key, "a string", value);
    return fallback ?? "";
  }

  /** A nested object; null if absent. */
  object(key: string): ConfigReader | null {
    const value = this.get(key);
    if (value === null) return null;
    if (isJsonObject(value)) return new ConfigReader(value, this.#complain, `${this.#path}: ${key}`);
    this.refuse(key, "an object", value);
    return null;
  }

  /** Token ids: a number, a list of numbers, or none. */
  tokenIds(key: string): readonly number[] {
    const value = this.get(key);
    if (value === null) return [];
    const ids = Array.isArray(value) ? value : [value];
    const whole = ids.flatMap((id) => (typeof id === "number" && Number.isInteger(id) && id >= 0 ? [id] : []));
    if (whole.length < ids.length) this.refuse(key, "token ids", value);
    return whole;
  }

  /** `dtype` (transformers 5) or `torch_dtype` (4). bf16 where the config says nothing. */
  dtype(): FloatDType {
    const key = this.has("dtype") ? "dtype" : "torch_dtype";
    const name = this.string(key, "bfloat16").replace(/^torch\./, "");
    const dtype = DTYPES.get(name);
    if (dtype === undefined && this.accepted(key)) this.refuse(key, "float32, float16 or bfloat16", name);
    return dtype ?? "bf16";
  }

  /** Complains with UnsupportedError `UNSUPPORTED_CONFIG` unless a feature has the one value that is implemented. */
  require(key: string, supported: JsonValue, fallback: JsonValue = supported): void {
    const value = this.get(key) ?? fallback;
    if (value === supported) return;
    const [expected, received] = [JSON.stringify(supported), JSON.stringify(value)];
    this.#complain(
      new UnsupportedError(
        "UNSUPPORTED_CONFIG",
        `${this.#path}: ${key}: expected ${expected}, the only value supported, but received ${received}`,
        { file: this.#path, option: key, expected, received },
      ),
    );
  }

  /** Complains of a value with CheckpointError `INVALID_CONFIG`. */
  refuse(key: string, expected: string, value: unknown): void {
    this.#refused.add(key);
    this.#complain(this.invalid(key, expected, value));
  }

  /** Complains of a kind of rotary scaling with UnsupportedError `UNSUPPORTED_ROPE`. */
  refuseRope(expected: readonly string[], received: string): void {
    const words = expected
      .map((kind) => JSON.stringify(kind))
      .join(", ")
      .replace(/, ([^,]*)$/, " or $1");
    this.#complain(
      new UnsupportedError(
        "UNSUPPORTED_ROPE",
        `config.json: expected rope scaling ${words} but received ${JSON.stringify(received)}`,
        { file: "config.json", expected: expected.join("|"), received },
      ),
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
