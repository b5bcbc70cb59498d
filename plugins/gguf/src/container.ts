/**
 * The container: magic, version, counts, metadata, tensor descriptions.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 * Nothing here knows what a key or a tensor means. The file is hostile: counts are compared with the bytes that are
 * left, so neither time nor memory exceeds a small multiple of the header's size.
 */
import { CheckpointError, type PackedStrings, type RandomAccessFile, UnsupportedError } from "shardloom/plugin";
import { HeaderCursor, MAX_HEADER_BYTES } from "./header-cursor.js";

/** Arrays of strings are packed, whatever their length. */
export type MetadataValue = string | number | bigint | boolean | readonly MetadataValue[] | PackedStrings;

/** A tensor as the file describes it; nothing but its size in the header has been checked. */
export interface TensorDescription {
  readonly name: string;
  /** ggml order: the extent that varies fastest in memory comes first. */
  readonly dimensions: readonly bigint[];
  /** Number of the ggml type. */
  readonly type: number;
  /** Bytes from the start of the data section. */
  readonly offset: bigint;
}

export interface Container {
  readonly version: number;
  /** Values of the keys that `keep` asked for. */
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  readonly tensors: readonly TensorDescription[];
  readonly alignment: number;
  /** Byte of the file where the data section starts. */
  readonly dataOffset: number;
}

export const MAGIC = "GGUF";

const DEFAULT_ALIGNMENT = 32;
const MAX_ALIGNMENT = 1024 * 1024;
const MAX_DIMENSIONS = 4;
const MAX_NAME_BYTES = 64;
const MAX_KEY_BYTES = 65_535;
const MAX_ARRAY_DEPTH = 4;
/** Values kept of one file. The largest vocabularies have about 300,000 tokens and twice as many merges. */
const MAX_KEPT_VALUES = 8 * 1024 * 1024;
/** Shortest key-value pair: length, one byte of key, type, one byte of value. */
const MIN_PAIR_BYTES = 8 + 1 + 4 + 1;
/** Shortest tensor description: length, one byte of name, number of dimensions, one dimension, type, offset. */
const MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8;

const STRING = 8;
const ARRAY = 9;

interface ScalarType {
  readonly sizeBytes: number;
  read(cursor: HeaderCursor, what: string): MetadataValue;
}

/** 64-bit integers become numbers where a number holds them exactly. */
function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function readBoolean(cursor: HeaderCursor, what: string): boolean {
  const value = cursor.u8(what);
  if (value > 1) throw cursor.invalid(`${what} to be 0 or 1`, String(value), { field: what });
  return value === 1;
}

const scalarTypes: ReadonlyMap<number, ScalarType> = new Map([
  [0, { sizeBytes: 1, read: (cursor, what) => cursor.u8(what) }],
  [1, { sizeBytes: 1, read: (cursor, what) => cursor.i8(what) }],
  [2, { sizeBytes: 2, read: (cursor, what) => cursor.u16(what) }],
  [3, { sizeBytes: 2, read: (cursor, what) => cursor.i16(what) }],
  [4, { sizeBytes: 4, read: (cursor, what) => cursor.u32(what) }],
  [5, { sizeBytes: 4, read: (cursor, what) => cursor.i32(what) }],
  [6, { sizeBytes: 4, read: (cursor, what) => cursor.f32(what) }],
  [7, { sizeBytes: 1, read: readBoolean }],
  [10, { sizeBytes: 8, read: (cursor, what) => narrow(cursor.u64(what)) }],
  [11, { sizeBytes: 8, read: (cursor, what) => narrow(cursor.i64(what)) }],
  [12, { sizeBytes: 8, read: (cursor, what) => cursor.f64(what) }],
] satisfies [number, ScalarType][]);

/**
 * Reads the header of a file; the tensors' data is not touched. Only metadata whose key `keep` accepts is kept, so that
 * a rank does not build a vocabulary it has no use for.
 *
 * Throws CheckpointError `INVALID_MAGIC`, `INVALID_HEADER`, `TRUNCATED_FILE` or `SHORT_READ`, and UnsupportedError
 * `UNSUPPORTED_GGUF_VERSION`.
 */
export function readContainer(file: RandomAccessFile, keep: (key: string) => boolean): Container {
  const cursor = new HeaderCursor(file);
  checkMagic(file, cursor);
  const version = readVersion(file, cursor);
  const tensorCount = cursor.size(Math.floor(MAX_HEADER_BYTES / MIN_TENSOR_BYTES), "the number of tensors");
  const pairCount = cursor.size(Math.floor(MAX_HEADER_BYTES / MIN_PAIR_BYTES), "the number of metadata pairs");
  demandRoom(cursor, pairCount, MIN_PAIR_BYTES, "metadata pairs");
  const metadata = readMetadata(cursor, pairCount, (key) => key === "general.alignment" || keep(key));
  demandRoom(cursor, tensorCount, MIN_TENSOR_BYTES, "tensor descriptions");
  const tensors: TensorDescription[] = [];
  for (let i = 0; i < tensorCount; i++) tensors.push(readTensor(cursor, i));
  const alignment = checkAlignment(cursor, metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT);
  const dataOffset = Math.ceil(cursor.position / alignment) * alignment;
  return { version, metadata, tensors, alignment, dataOffset };
}

function checkMagic(file: RandomAccessFile, cursor: HeaderCursor): void {
  const bytes =
    file.sizeBytes < 4 ? [] : [cursor.u8("magic"), cursor.u8("magic"), cursor.u8("magic"), cursor.u8("magic")];
  const magic = String.fromCharCode(...bytes);
  if (magic === MAGIC) return;
  const received = bytes.length === 0 ? `${file.sizeBytes} bytes` : JSON.stringify(magic);
  throw new CheckpointError(
    "INVALID_MAGIC",
    `${file.path}: expected a GGUF file, which starts with ${JSON.stringify(MAGIC)}, but received ${received}`,
    { file: file.path, expected: MAGIC, received },
  );
}

function readVersion(file: RandomAccessFile, cursor: HeaderCursor): number {
  const version = cursor.u32("the version");
  if (version === 2 || version === 3) return version;
  // A version is a small number; one whose low half is empty was written with its bytes the other way round.
  const received = (version & 0xffff) === 0 ? "big-endian data" : `version ${version}`;
  throw new UnsupportedError(
    "UNSUPPORTED_GGUF_VERSION",
    `${file.path}: expected little-endian GGUF version 2 or 3 but received ${received}`,
    { file: file.path, expected: "2 or 3", received },
  );
}

function demandRoom(cursor: HeaderCursor, count: number, minBytes: number, what: string): void {
  if (count * minBytes > cursor.remaining) {
    throw cursor.invalid(
      `at most ${Math.floor(cursor.remaining / minBytes)} ${what} in the rest of the file`,
      `${count}`,
      {
        field: what,
      },
    );
  }
}

function readMetadata(
  cursor: HeaderCursor,
  count: number,
  keep: (key: string) => boolean,
): ReadonlyMap<string, MetadataValue> {
  const metadata = new Map<string, MetadataValue>();
  const seen = new Set<string>();
  const budget = { values: MAX_KEPT_VALUES };
  for (let i = 0; i < count; i++) {
    const key = cursor.string(`metadata key ${i}`, MAX_KEY_BYTES);
    if (seen.has(key)) throw cursor.invalid("every metadata key once", `${JSON.stringify(key)} twice`, { field: key });
    seen.add(key);
    const type = cursor.u32(`the type of ${key}`);
    if (keep(key)) metadata.set(key, readValue(cursor, type, key, 0, budget));
    else skipValue(cursor, type, key, 0);
  }
  return metadata;
}

function readValue(
  cursor: HeaderCursor,
  type: number,
  key: string,
  depth: number,
  budget: { values: number },
): MetadataValue {
  if (type === STRING) return cursor.string(key);
  if (type !== ARRAY) return scalarType(cursor, type, key).read(cursor, key);
  const { elementType, count } = readArrayHead(cursor, key, depth);
  budget.values -= count + 1;
  if (budget.values < 0) {
    throw cursor.invalid(`metadata of at most ${MAX_KEPT_VALUES} values`, `more, in ${key}`, { field: key });
  }
  if (elementType === STRING) return cursor.strings(count, key);
  const values: MetadataValue[] = [];
  if (elementType === ARRAY) {
    for (let i = 0; i < count; i++) values.push(readValue(cursor, ARRAY, key, depth + 1, budget));
  } else {
    const scalar = scalarType(cursor, elementType, key);
    for (let i = 0; i < count; i++) values.push(scalar.read(cursor, key));
  }
  return values;
}

function skipValue(cursor: HeaderCursor, type: number, key: string, depth: number): void {
  if (type === STRING) {
    cursor.skipString(key);
  } else if (type !== ARRAY) {
    cursor.skip(scalarType(cursor, type, key).sizeBytes, key);
  } else {
    const { elementType, count } = readArrayHead(cursor, key, depth);
    if (elementType === STRING) cursor.skipStrings(count, key);
    else if (elementType === ARRAY) for (let i = 0; i < count; i++) skipValue(cursor, ARRAY, key, depth + 1);
    else cursor.skip(count * scalarType(cursor, elementType, key).sizeBytes, key);
  }
}

/** Element type and length of an array whose elements fit in the rest of the file. */
function readArrayHead(cursor: HeaderCursor, key: string, depth: number): { elementType: number; count: number } {
  if (depth >= MAX_ARRAY_DEPTH) {
    throw cursor.invalid(`arrays nested at most ${MAX_ARRAY_DEPTH} deep`, `more, in ${key}`, { field: key });
  }
  const elementType = cursor.u32(`the element type of ${key}`);
  const minBytes =
    elementType === STRING ? 8 : elementType === ARRAY ? 12 : scalarType(cursor, elementType, key).sizeBytes;
  const count = cursor.size(MAX_HEADER_BYTES, `the length of ${key}`);
  demandRoom(cursor, count, minBytes, `elements of ${key}`);
  return { elementType, count };
}

function scalarType(cursor: HeaderCursor, type: number, key: string): ScalarType {
  const scalar = scalarTypes.get(type);
  if (scalar === undefined) throw cursor.invalid(`a value type from 0 to 12 for ${key}`, String(type), { field: key });
  return scalar;
}

function readTensor(cursor: HeaderCursor, index: number): TensorDescription {
  const name = cursor.string(`the name of tensor ${index}`, MAX_NAME_BYTES);
  const dimensionCount = cursor.u32(`the number of dimensions of ${name}`);
  if (dimensionCount < 1 || dimensionCount > MAX_DIMENSIONS) {
    throw cursor.invalid(`1 to ${MAX_DIMENSIONS} dimensions of tensor ${name}`, String(dimensionCount), {
      tensor: name,
    });
  }
  const dimensions: bigint[] = [];
  for (let i = 0; i < dimensionCount; i++) dimensions.push(cursor.u64(`a dimension of ${name}`));
  return { name, dimensions, type: cursor.u32(`the type of ${name}`), offset: cursor.u64(`the offset of ${name}`) };
}

function checkAlignment(cursor: HeaderCursor, value: MetadataValue): number {
  if (typeof value === "number" && Number.isInteger(Math.log2(value)) && value >= 1 && value <= MAX_ALIGNMENT) {
    return value;
  }
  throw cursor.invalid(`general.alignment to be a power of two up to ${MAX_ALIGNMENT}`, String(value), {
    field: "general.alignment",
  });
}
