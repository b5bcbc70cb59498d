/** From the text behind a flag to its value. What these functions return throws OptionError that names the flag. */
import { OptionError } from "../core/errors.js";
import type { JsonObject, JsonValue } from "../core/json.js";
import { checkWorldSize } from "../core/rank.js";
import { MAX_THREADS_PER_RANK } from "../parallel/placement.js";

/** A whole number in decimal digits. Throws OptionError `INVALID_OPTION`. */
export function wholeNumber(flag: string, least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw invalid(flag, `a whole number ${range}`, text);
  };
}

/** A decimal number; `expected` puts what `accepts` wants into words. Throws OptionError `INVALID_OPTION`. */
export function realNumber(
  flag: string,
  expected: string,
  accepts: (value: number) => boolean,
): (text: string) => number {
  return (text) => {
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    if (accepts(value)) return value;
    throw invalid(flag, `a number ${expected}`, text);
  };
}

/** One of a few words. Throws OptionError `INVALID_OPTION`. */
export function oneOf<Word extends string>(flag: string, words: readonly Word[]): (text: string) => Word {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return word;
    throw invalid(flag, `one of ${words.join(", ")}`, text);
  };
}

/** A number of ranks. Throws OptionError `INVALID_WORLD_SIZE`. */
export function worldSize(flag: string): (text: string) => number {
  return (text) => parseWorldSize(text, flag);
}

function parseWorldSize(text: string, flag: string, others?: string): number {
  return checkWorldSize(/^\d+$/.test(text) ? Number(text) : JSON.stringify(text), flag, others);
}

/** A number of threads, or auto. Throws OptionError `INVALID_OPTION`. */
export function threadCount(flag: string): (text: string) => number | "auto" {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (text === "auto" || (value >= 1 && value <= MAX_THREADS_PER_RANK)) return text === "auto" ? text : value;
    throw invalid(flag, `auto or a whole number from 1 to ${MAX_THREADS_PER_RANK}`, text);
  };
}

/** A number of ranks, or auto. Throws OptionError `INVALID_WORLD_SIZE`. */
export function worldSizeOrAuto(flag: string): (text: string) => number | "auto" {
  return (text) => (text === "auto" ? text : parseWorldSize(text, flag, "auto or "));
}

/** Token ids between commas or spaces. Throws OptionError `INVALID_TOKEN_ID`. */
export function tokenIds(flag: string): (text: string) => readonly number[] {
  return (text) => parseTokenIds(text, flag);
}

/** Token ids between commas or white space, from `source`. Throws OptionError `INVALID_TOKEN_ID`. */
export function parseTokenIds(text: string, source: string): readonly number[] {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  return words.map((word) => {
    if (/^\d+$/.test(word)) return Number(word);
    throw invalid(source, "token ids, whole numbers between commas or spaces", word, "INVALID_TOKEN_ID");
  });
}

/** For a flag that may be given several times. */
export function collect(text: string, previous: readonly string[] = []): readonly string[] {
  return [...previous, text];
}

/** The same, each text turned into a value. */
export function collectWith<Value>(
  parse: (text: string) => Value,
): (text: string, previous?: readonly Value[]) => readonly Value[] {
  return (text, previous = []) => [...previous, parse(text)];
}

/** One option of somebody else's. */
export type KeyValue = readonly [key: string, value: JsonValue];

/** `key=value`, the value in JSON; what is no JSON is text. Throws OptionError `INVALID_OPTION`. */
export function keyValue(flag: string): (text: string) => KeyValue {
  return (text) => {
    const [, key, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (key === undefined || value === undefined) throw invalid(flag, "a key and a value with = between them", text);
    return [key, jsonOrText(value)];
  };
}

function jsonOrText(text: string): JsonValue {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The last value of each key. */
export function optionsOf(pairs: readonly KeyValue[] = []): JsonObject {
  return Object.fromEntries(pairs);
}

const SIZE_UNITS: ReadonlyMap<string, number> = new Map([
  ["", 1],
  ["B", 1],
  ["KB", 1e3],
  ["MB", 1e6],
  ["GB", 1e9],
  ["TB", 1e12],
  ["KIB", 2 ** 10],
  ["MIB", 2 ** 20],
  ["GIB", 2 ** 30],
  ["TIB", 2 ** 40],
]);

/** A path. Throws OptionError `INVALID_OPTION` for an empty one, which would name the directory one is in. */
export function filePath(flag: string): (text: string) => string {
  return (text) => {
    if (text !== "") return text;
    throw invalid(flag, "a path", text);
  };
}

/** Bytes: a number with a decimal or binary unit, `5GB`, `500MiB`, or none. Throws OptionError `INVALID_OPTION`. */
export function byteSize(flag: string): (text: string) => number {
  return (text) => {
    const [, number = "", unit = ""] = /^(\d+(?:\.\d+)?) ?([a-z]*)$/i.exec(text) ?? [];
    const sizeBytes = Math.floor(Number(number) * (SIZE_UNITS.get(unit.toUpperCase()) ?? 0));
    if (Number.isSafeInteger(sizeBytes) && sizeBytes > 0) return sizeBytes;
    throw invalid(flag, "a size such as 5GB, 500MB or 2GiB", text);
  };
}

function invalid(flag: string, expected: string, text: string, code = "INVALID_OPTION"): OptionError {
  const received = JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}...` : text);
  return new OptionError(code, `expected ${flag} to be ${expected} but received ${received}`, {
    option: flag,
    expected,
    received,
  });
}
