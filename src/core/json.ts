/** JSON from files we do not trust: parsed as unknown values, and read through checked getters. */
import { readFileSync, statSync } from "node:fs";
import { CheckpointError, cannotRead, describeValue, reasonOf } from "./errors.js";

export type JsonValue = string | number | boolean | null | JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

/** No config, tokenizer or index file of a model is larger than this. */
export const MAX_JSON_BYTES = 256 * 1024 * 1024;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Parses text that must hold one JSON object. Throws CheckpointError `INVALID_JSON` naming `file`. */
export function parseJsonObject(text: string, file: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalid(file, "JSON", reasonOf(error), error);
  }
  if (!isJsonObject(value)) throw invalid(file, "a JSON object", describeValue(value));
  return value;
}

/** Reads a file that must hold one JSON object. Throws CheckpointError as `readTextFile` does, or `INVALID_JSON`. */
export function readJsonObject(file: string): JsonObject {
  return parseJsonObject(readTextFile(file), file);
}

/**
 * The text of a small UTF-8 file, without its byte order mark. Throws CheckpointError `FILE_NOT_FOUND` when there is
 * none, `READ_FAILED` when the system does not let us read it, `FILE_TOO_LARGE` beyond MAX_JSON_BYTES, or `INVALID_UTF8`.
 */
export function readTextFile(file: string): string {
  const bytes = readSmallFile(file);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new CheckpointError(
      "INVALID_UTF8",
      `${file}: expected UTF-8 text but received other bytes`,
      { file },
      { cause: error },
    );
  }
}

function readSmallFile(file: string): Uint8Array {
  try {
    const status = statSync(file);
    if (!status.isFile()) throw new Error("it is not a regular file");
    const sizeBytes = status.size;
    if (sizeBytes > MAX_JSON_BYTES) {
      throw new CheckpointError(
        "FILE_TOO_LARGE",
        `${file}: expected at most ${MAX_JSON_BYTES} bytes but received ${sizeBytes}`,
        { file, expected: MAX_JSON_BYTES, received: sizeBytes },
      );
    }
    return readFileSync(file);
  } catch (error) {
    if (error instanceof CheckpointError) throw error;
    throw cannotRead(file, error);
  }
}

function invalid(file: string, expected: string, received: string, cause?: unknown): CheckpointError {
  return new CheckpointError(
    "INVALID_JSON",
    `${file}: expected ${expected} but received ${received}`,
    { file, expected, received },
    { cause },
  );
}
