/** Checked reading of a JSON document whose every error names the place: `state.json: files[2].rank: expected ...`. */
import { CheckpointError, describeValue } from "../../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../../core/json.js";

/** More entries than any list of a state has. */
const MAX_ENTRIES = 4_000_000;

/** A value somewhere in a document. */
export interface Reader {
  readonly value: JsonValue | undefined;
  readonly place: string;
  readonly file: string;
  /** The error of a value that cannot be. */
  readonly invalid: (expected: string, received: string) => CheckpointError;
  /** The error of a document of another version. */
  readonly version: (expected: number, received: number) => CheckpointError;
}

/** A checked object, and where it is. */
export interface ReadObject {
  readonly object: JsonObject;
  readonly at: Reader;
}

export function readerOf(value: JsonValue | undefined, file: string, place = ""): Reader {
  const error = (code: string, expected: string | number, received: string | number): CheckpointError => {
    const subject = place === "" ? file : `${file}: ${place}`;
    const message = `${subject}: expected ${expected} but received ${received}`;
    return new CheckpointError(code, message, { file, expected, received });
  };
  return {
    value,
    place,
    file,
    invalid: (expected, received) => error("INVALID_SHARDED_STATE", expected, received),
    version: (expected, received) => error("SHARDED_STATE_VERSION", `version ${expected}`, received),
  };
}

export function readObject(reader: Reader): ReadObject {
  if (!isJsonObject(reader.value)) throw reader.invalid("an object", describeValue(reader.value));
  return { object: reader.value, at: reader };
}

export function field({ object, at }: ReadObject, key: string): Reader {
  const value = Object.hasOwn(object, key) ? object[key] : undefined;
  return readerOf(value, at.file, at.place === "" ? key : `${at.place}.${key}`);
}

export function readList(reader: Reader, most = MAX_ENTRIES): readonly Reader[] {
  const { value, file, place } = reader;
  if (!Array.isArray(value)) throw reader.invalid("a list", describeValue(value));
  if (value.length > most) throw reader.invalid(`at most ${most} entries`, `${value.length}`);
  return value.map((entry, i) => readerOf(entry, file, `${place}[${i}]`));
}

export function readText(reader: Reader): string {
  if (typeof reader.value === "string") return reader.value;
  throw reader.invalid("a text", describeValue(reader.value));
}

/** A whole number from `least` to `most`. */
export function checkCount(reader: Reader, least: number, most = Number.MAX_SAFE_INTEGER): number {
  const { value } = reader;
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw reader.invalid(`a whole number from ${least} to ${most}`, describeValue(value));
}
