/**
 * The header of a safetensors file: 8 bytes, the length n of the header as a little-endian integer; n bytes, a JSON
 * object from tensor name to {dtype, shape, data_offsets: [begin, end]}, with offsets relative to the first byte after
 * the header; then the data, which the tensors cover exactly. Source: the "Format" section of the safetensors README
 * (huggingface/safetensors); the limits are those of its Rust implementation where it has one.
 *
 * Nothing in a header is believed: it may come from anywhere.
 */
import { DTYPES, type DType, dtypeBytes } from "../core/dtype.js";
import { CheckpointError, describeValue, reasonOf } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";
import { findDuplicateKey } from "./duplicate-keys.js";

/** Bytes before the header that hold its length. */
export const LENGTH_BYTES = 8;
/** As in the Rust implementation. */
export const MAX_HEADER_BYTES = 100_000_000;
/** More than all files together of the largest published mixtures of experts hold, quantized. */
export const MAX_TENSORS = 262_144;
/** More dimensions than any tensor of a model has. */
export const MAX_DIMENSIONS = 16;

/** Characters of a name or value that a message repeats. */
const MAX_QUOTED = 300;

const METADATA_KEY = "__metadata__";
const dtypes: ReadonlyMap<string, DType> = new Map(DTYPES.map((dtype) => [dtype.toUpperCase(), dtype]));

/** One tensor of the table, checked. */
export interface HeaderEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes `[begin, end)` of the data section. */
  readonly begin: number;
  readonly end: number;
}

/** What an error is about: a tensor, or the header as a whole. */
interface At {
  readonly tensor?: string;
}

export interface SafetensorsHeader {
  /** In the order of their bytes in the file. */
  readonly entries: readonly HeaderEntry[];
  /** The free-form strings under `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
}

/**
 * The length of the header, from the first 8 bytes of a file of `fileBytes`. Throws CheckpointError `HEADER_EMPTY`,
 * `HEADER_TOO_LARGE` or `HEADER_BEYOND_FILE`; so a caller may allocate what it returns.
 */
export function headerLength(prefix: Uint8Array, fileBytes: number, file: string): number {
  const claimed = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (claimed === 0n) throw invalid("HEADER_EMPTY", file, "a header", "a header length of 0");
  if (claimed > BigInt(MAX_HEADER_BYTES)) {
    throw invalid("HEADER_TOO_LARGE", file, `a header of at most ${MAX_HEADER_BYTES} bytes`, `a length of ${claimed}`);
  }
  const length = Number(claimed);
  const available = fileBytes - LENGTH_BYTES;
  if (length > available) {
    throw invalid("HEADER_BEYOND_FILE", file, `a header within the file's ${fileBytes} bytes`, `a length of ${length}`);
  }
  return length;
}

/**
 * Reads the table from the header's bytes, for a file with `dataBytes` bytes after the header. Throws CheckpointError
 * with the code of what is wrong, naming the tensor where there is one; afterwards the entries tile the data exactly.
 */
export function parseHeader(bytes: Uint8Array, dataBytes: number, file: string): SafetensorsHeader {
  const table = parseObject(bytes, file);
  const names = Object.keys(table).filter((key) => key !== METADATA_KEY);
  if (names.length > MAX_TENSORS) {
    throw invalid("TOO_MANY_TENSORS", file, `at most ${MAX_TENSORS} tensors`, names.length);
  }
  const metadata = parseMetadata(table[METADATA_KEY], file);
  const entries = names.map((name) => parseEntry(name, table[name], dataBytes, file));
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkTiling(entries, dataBytes, file);
  return { entries, metadata };
}

function parseObject(bytes: Uint8Array, file: string): JsonObject {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw invalid("HEADER_NOT_UTF8", file, "a header in UTF-8", "other bytes", {}, cause);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const reason = reasonOf(cause);
    throw invalid("HEADER_NOT_JSON", file, "a header in JSON", reason, {}, cause);
  }
  // The format demands the brace as the first byte; JSON would also allow white space before it.
  if (!isJsonObject(value) || !text.startsWith("{")) {
    const received = isJsonObject(value) ? "white space before it" : describeValue(value);
    throw invalid("HEADER_NOT_OBJECT", file, "a header that is one JSON object", received);
  }
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) {
    throw invalid("DUPLICATE_KEY", file, "every key once", `${JSON.stringify(duplicate)} twice in one object`, {
      tensor: duplicate,
    });
  }
  return value;
}

function parseMetadata(value: JsonValue | undefined, file: string): ReadonlyMap<string, string> {
  const metadata = new Map<string, string>();
  if (value === undefined) return metadata;
  if (!isJsonObject(value)) {
    throw invalid("INVALID_METADATA", file, `${METADATA_KEY} to be an object`, describeValue(value));
  }
  for (const [key, entry] of Object.entries(value)) {
    if (typeof entry !== "string") {
      const expected = `${METADATA_KEY} to hold strings only`;
      throw invalid("INVALID_METADATA", file, expected, `${JSON.stringify(key)}: ${describeValue(entry)}`);
    }
    metadata.set(key, entry);
  }
  return metadata;
}

function parseEntry(tensor: string, value: JsonValue | undefined, dataBytes: number, file: string): HeaderEntry {
  const at: At = { tensor };
  if (!isJsonObject(value)) {
    throw invalid("INVALID_TENSOR_ENTRY", file, "an object {dtype, shape, data_offsets}", describeValue(value), at);
  }
  const dtype = parseDType(value["dtype"], file, at);
  const shape = parseShape(value["shape"], file, at);
  const [begin, end] = parseOffsets(value["data_offsets"], file, at);
  const sizeBytes = sizeOf(shape, dtype);
  if (sizeBytes === null) {
    throw invalid("TENSOR_TOO_LARGE", file, "a shape whose size is below 2^53 bytes", `[${shape.join(", ")}]`, at);
  }
  if (end > dataBytes) {
    const expected = `data_offsets within the file's ${dataBytes} data bytes`;
    throw invalid("OFFSETS_BEYOND_FILE", file, expected, `[${begin}, ${end}]`, at);
  }
  if (end - begin !== sizeBytes) {
    const expected = `data_offsets ${sizeBytes} bytes apart for shape [${shape.join(", ")}] of ${dtype}`;
    throw invalid("SIZE_MISMATCH", file, expected, `[${begin}, ${end}]`, at);
  }
  return { name: tensor, dtype, shape, begin, end };
}

function parseDType(value: JsonValue | undefined, file: string, at: At): DType {
  if (typeof value !== "string") {
    throw invalid("INVALID_TENSOR_ENTRY", file, "dtype to be a string", describeValue(value), at);
  }
  const dtype = dtypes.get(value);
  if (dtype === undefined) {
    const expected = `one of the supported dtypes ${[...dtypes.keys()].join(", ")}`;
    throw invalid("UNSUPPORTED_DTYPE", file, expected, JSON.stringify(value), at);
  }
  return dtype;
}

function parseShape(value: JsonValue | undefined, file: string, at: At): readonly number[] {
  if (!Array.isArray(value)) {
    throw invalid("INVALID_TENSOR_ENTRY", file, "shape to be an array", describeValue(value), at);
  }
  if (value.length > MAX_DIMENSIONS) {
    throw invalid("INVALID_SHAPE", file, `a shape of at most ${MAX_DIMENSIONS} dimensions`, value.length, at);
  }
  return value.map((extent) => {
    if (isCount(extent)) return extent;
    throw invalid("INVALID_SHAPE", file, "a shape of whole numbers from 0 to 2^53 - 1", describeValue(extent), at);
  });
}

function parseOffsets(value: JsonValue | undefined, file: string, at: At): readonly [number, number] {
  if (!Array.isArray(value)) {
    throw invalid("INVALID_TENSOR_ENTRY", file, "data_offsets to be an array", describeValue(value), at);
  }
  const [begin, end] = value;
  if (value.length !== 2 || !isCount(begin) || !isCount(end) || begin > end) {
    const expected = "data_offsets to be two whole numbers [begin, end], begin <= end < 2^53";
    const received = `${value.length} elements [${value.slice(0, 2).map(describeValue).join(", ")}]`;
    throw invalid("INVALID_OFFSETS", file, expected, received, at);
  }
  return [begin, end];
}

function isCount(value: JsonValue | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** Bytes of the tensor; null when they, or a step of the product, are beyond what a double counts exactly. */
function sizeOf(shape: readonly number[], dtype: DType): number | null {
  let sizeBytes = dtypeBytes(dtype);
  for (const extent of shape) {
    sizeBytes *= extent;
    if (!Number.isSafeInteger(sizeBytes)) return null;
  }
  return sizeBytes;
}

/** Each byte of the data belongs to exactly one tensor; `entries` are in the order of their bytes. */
function checkTiling(entries: readonly HeaderEntry[], dataBytes: number, file: string): void {
  let covered = 0;
  let before = "";
  for (const { name, begin, end } of entries) {
    if (begin < covered) {
      const expected = "tensors that do not overlap";
      const received = `one that begins at ${begin}, before the end of ${JSON.stringify(before)} at ${covered}`;
      throw invalid("OVERLAPPING_TENSORS", file, expected, received, { tensor: name });
    }
    if (begin > covered) {
      const received = `${begin - covered} unused bytes before this one, at ${covered}`;
      throw invalid("UNCLAIMED_BYTES", file, "tensors without holes between them", received, { tensor: name });
    }
    covered = end;
    before = name;
  }
  if (covered < dataBytes) {
    const received = `${dataBytes - covered} more bytes`;
    throw invalid("TRAILING_BYTES", file, "the file to end with its last tensor", received);
  }
}

/** `FILE: tensor "NAME": expected E but received R`. What comes from the file is cut where it is absurdly long. */
function invalid(
  code: string,
  file: string,
  expected: string,
  received: string | number,
  at: At = {},
  cause?: unknown,
): CheckpointError {
  const tensor = at.tensor === undefined ? {} : { tensor: clip(at.tensor) };
  const shown = typeof received === "string" ? clip(received) : received;
  const subject = tensor.tensor === undefined ? file : `${file}: tensor ${JSON.stringify(tensor.tensor)}`;
  const message = `${subject}: expected ${expected} but received ${shown}`;
  return new CheckpointError(code, message, { ...tensor, file, expected, received: shown }, { cause });
}

function clip(text: string): string {
  return text.length <= MAX_QUOTED ? text : `${text.slice(0, MAX_QUOTED)}…`;
}
