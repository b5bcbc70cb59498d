/** Typed access to the metadata of one file, with errors that name the key. */
import { CheckpointError, type PackedStrings } from "shardloom/plugin";
import type { MetadataValue } from "./container.js";

const MAX_COUNT = 2 ** 31 - 1;

export class Metadata {
  readonly file: string;
  readonly #values: ReadonlyMap<string, MetadataValue>;

  constructor(file: string, values: ReadonlyMap<string, MetadataValue>) {
    this.file = file;
    this.#values = values;
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  string(key: string): string {
    return this.optionalString(key) ?? this.#missing(key);
  }

  optionalString(key: string): string | null {
    const value = this.#values.get(key);
    if (value === undefined || typeof value === "string") return value ?? null;
    throw this.invalid(key, "a string", describe(value));
  }

  optionalBoolean(key: string): boolean | null {
    const value = this.#values.get(key);
    if (value === undefined || typeof value === "boolean") return value ?? null;
    throw this.invalid(key, "a boolean", describe(value));
  }

  /** A finite number. */
  number(key: string): number {
    return this.optionalNumber(key) ?? this.#missing(key);
  }

  optionalNumber(key: string): number | null {
    const value = this.#values.get(key);
    if (value === undefined || (typeof value === "number" && Number.isFinite(value))) return value ?? null;
    throw this.invalid(key, "a finite number", describe(value));
  }

  /** A whole number from `least` to 2^31 - 1. */
  count(key: string, least = 1): number {
    return this.optionalCount(key, least) ?? this.#missing(key);
  }

  optionalCount(key: string, least = 1): number | null {
    const value = this.#values.get(key);
    if (value === undefined) return null;
    if (typeof value === "number" && isCount(value, least)) return value;
    throw this.invalid(key, `a whole number from ${least} to ${MAX_COUNT}`, describe(value));
  }

  /** A count that some files give once and others once a layer. Throws when the layers differ. */
  uniformCount(key: string): number {
    return this.optionalUniformCount(key) ?? this.#missing(key);
  }

  optionalUniformCount(key: string): number | null {
    const value = this.#values.get(key);
    if (!Array.isArray(value)) return this.optionalCount(key);
    const first: unknown = value[0];
    if (typeof first === "number" && isCount(first, 1) && value.every((item) => item === first)) return first;
    throw this.invalid(key, "the same positive number for every layer", describe(value));
  }

  strings(key: string): PackedStrings {
    const value = this.#values.get(key);
    if (value === undefined) return this.#missing(key);
    if (isPacked(value)) return value;
    throw this.invalid(key, "an array of strings", describe(value));
  }

  optionalNumbers(key: string): readonly number[] | null {
    const value = this.#values.get(key);
    if (value === undefined) return null;
    if (isArray(value) && value.every(isFiniteNumber)) return value;
    throw this.invalid(key, "an array of finite numbers", describe(value));
  }

  invalid(key: string, expected: string, received: string): CheckpointError {
    return new CheckpointError(
      "INVALID_METADATA",
      `${this.file}: expected ${key} to be ${expected} but received ${received}`,
      { file: this.file, field: key, expected, received },
    );
  }

  #missing(key: string): never {
    throw this.invalid(key, "there", "nothing");
  }
}

function isFiniteNumber(value: MetadataValue): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

function isCount(value: number, least: number): boolean {
  return Number.isInteger(value) && value >= least && value <= MAX_COUNT;
}

function isArray(value: MetadataValue): value is readonly MetadataValue[] {
  return Array.isArray(value);
}

function isPacked(value: MetadataValue): value is PackedStrings {
  return typeof value === "object" && "ends" in value;
}

function describe(value: MetadataValue): string {
  if (isArray(value)) return `an array of ${value.length}`;
  if (isPacked(value)) return `an array of ${value.ends.length}`;
  return typeof value === "string" ? `the string ${JSON.stringify(value.slice(0, 80))}` : String(value);
}
