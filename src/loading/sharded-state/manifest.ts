/**
 * The manifest of a sharded state: which rank's file holds which rows and columns of which weight, in which execution
 * format. It is the only description of the state; what the files themselves say is held to it. Nothing in it is believed:
 * every number is checked, and pieces must tile their weights.
 */

import { type DType, type FloatDType, isDType, isFloat } from "../../core/dtype.js";
import { MIN_BLOCK_SIZE } from "../../kernels/execution-format.js";
import { type Box, boxSize, cellsOf } from "../../parallel/coverage.js";
import type { Range } from "../../parallel/partition.js";
import { checkCount, field, type Reader, readList, readObject, readText } from "./manifest-reader.js";

export const MANIFEST_FILE = "shardloom-state.json";
export const STATE_FORMAT = "shardloom sharded state";
/** Changes when an older shardloom could not read a newer state, or would misread it. */
export const STATE_VERSION = 2;
/** Bytes of a file that have one checksum: ranks share a large file's verification. */
export const CHECKSUM_BYTES = 64 * 1024 * 1024;
/** More ranks than any group has, and more entries of codebooks than any model's formats. */
const MAX_RANKS = 1024;
const MAX_CODEBOOKS = 65_536;

/** A weight file of one rank. */
export interface StateFile {
  readonly name: string;
  readonly rank: number;
  readonly sizeBytes: number;
  /** CRC-32 (as zlib's) of each CHECKSUM_BYTES of the file, from its first byte on. */
  readonly checksums: readonly number[];
}

/** dtype of scales and minimums. */
export type ValueDType = "f32" | "f16";

/** How the elements of a piece are stored. Tensors of rank's files, below the name of the matrix. */
export type PieceStorage =
  /** `.weight` */
  | { readonly format: "dense"; readonly dtype: FloatDType }
  /** `.weight.codes`, `.weight.scales` and, with minimums, `.weight.minimums` */
  | {
      readonly format: "code4";
      readonly blockSize: number;
      readonly minimums: boolean;
      readonly valueDType: ValueDType;
      /** Index in the manifest's codebooks. */
      readonly codebook: number;
    }
  | {
      readonly format: "int8";
      readonly blockSize: number;
      readonly minimums: boolean;
      readonly valueDType: ValueDType;
      readonly multiplier: number;
      /** A checksum of the scales, where one holds for all inputs of a row of the piece; null elsewhere. */
      readonly rowScales: number | null;
    };

/** Rows and columns of a matrix that one rank holds. */
export interface MatrixPiece {
  readonly rank: number;
  /** Tells pieces of a matrix on one rank apart; part of the names of their tensors. */
  readonly index: number;
  readonly rows: Range;
  readonly columns: Range;
  readonly storage: PieceStorage;
}

/** A matrix of a linear layer or an embedding. */
export interface StateMatrix {
  /** `model.layers.0.self_attn.q_proj` */
  readonly name: string;
  readonly outputs: number;
  readonly inputs: number;
  readonly pieces: readonly MatrixPiece[];
}

/** Elements of a vector that one rank holds. */
export interface VectorPiece {
  readonly rank: number;
  readonly range: Range;
}

/** A norm's weight, or a bias. */
export interface StateVector {
  /** `model.norm.weight` */
  readonly name: string;
  readonly dtype: FloatDType;
  readonly size: number;
  readonly pieces: readonly VectorPiece[];
}

export interface StateManifest {
  readonly worldSize: number;
  /** dtype of unquantized weights. */
  readonly dtype: FloatDType;
  readonly files: readonly StateFile[];
  /** 16 entries each. */
  readonly codebooks: readonly (readonly number[])[];
  readonly matrices: readonly StateMatrix[];
  readonly vectors: readonly StateVector[];
}

/** Name of a tensor of a piece in its rank's files. `plane` is empty for a dense one. */
export function pieceTensorName(
  matrix: string,
  { index }: MatrixPiece,
  plane: "" | "codes" | "scales" | "minimums",
): string {
  const name = `${matrix}.weight${plane === "" ? "" : `.${plane}`}`;
  return index === 0 ? name : `${name}.${index}`;
}

/** The manifest as JSON. */
export function formatManifest(manifest: StateManifest): string {
  return `${JSON.stringify({ format: STATE_FORMAT, version: STATE_VERSION, ...manifest })}\n`;
}

/**
 * Reads a manifest. Throws CheckpointError `SHARDED_STATE_VERSION` for one of another version, `INVALID_SHARDED_STATE`
 * for anything in it that cannot be.
 */
export function parseManifest(reader: Reader): StateManifest {
  const root = readObject(reader);
  const format = readText(field(root, "format"));
  if (format !== STATE_FORMAT)
    throw field(root, "format").invalid(JSON.stringify(STATE_FORMAT), JSON.stringify(format));
  const version = checkCount(field(root, "version"), 0);
  if (version !== STATE_VERSION) throw field(root, "version").version(STATE_VERSION, version);
  const worldSize = checkCount(field(root, "worldSize"), 1, MAX_RANKS);
  const files = readList(field(root, "files")).map((file) => parseFile(file, worldSize));
  const codebooks = readList(field(root, "codebooks"), MAX_CODEBOOKS).map(parseCodebook);
  return {
    worldSize,
    dtype: readFloat(field(root, "dtype")),
    files,
    codebooks,
    matrices: readList(field(root, "matrices")).map((matrix) => parseMatrix(matrix, worldSize, codebooks.length)),
    vectors: readList(field(root, "vectors")).map((vector) => parseVector(vector, worldSize)),
  };
}

function parseFile(reader: Reader, worldSize: number): StateFile {
  const file = readObject(reader);
  const name = readText(field(file, "name"));
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$/.test(name)) {
    throw field(file, "name").invalid("the name of a .safetensors file beside the manifest", JSON.stringify(name));
  }
  const sizeBytes = checkCount(field(file, "sizeBytes"), 1);
  const checksums = readList(field(file, "checksums")).map((each) => checkCount(each, 0, 0xffff_ffff));
  const expected = Math.ceil(sizeBytes / CHECKSUM_BYTES);
  if (checksums.length !== expected) {
    throw field(file, "checksums").invalid(`${expected} checksums for ${sizeBytes} bytes`, `${checksums.length}`);
  }
  return { name, rank: checkCount(field(file, "rank"), 0, worldSize - 1), sizeBytes, checksums };
}

function parseCodebook(reader: Reader): readonly number[] {
  const entries = readList(reader).map(readNumber);
  if (entries.length !== 16) throw reader.invalid("16 entries", `${entries.length}`);
  return entries;
}

function parseMatrix(reader: Reader, worldSize: number, codebooks: number): StateMatrix {
  const matrix = readObject(reader);
  const outputs = checkCount(field(matrix, "outputs"), 1);
  const inputs = checkCount(field(matrix, "inputs"), 1);
  const pieces = readList(field(matrix, "pieces")).map((each): MatrixPiece => {
    const piece = readObject(each);
    const columns = readRange(field(piece, "columns"), inputs);
    return {
      rank: checkCount(field(piece, "rank"), 0, worldSize - 1),
      index: checkCount(field(piece, "index"), 0),
      rows: readRange(field(piece, "rows"), outputs),
      columns,
      storage: parseStorage(field(piece, "storage"), columns, codebooks),
    };
  });
  checkTiled(
    reader,
    [outputs, inputs],
    pieces.map(({ rows, columns }) => [rows, columns]),
  );
  return { name: readText(field(matrix, "name")), outputs, inputs, pieces };
}

function parseStorage(reader: Reader, columns: Range, codebooks: number): PieceStorage {
  const storage = readObject(reader);
  const format = readText(field(storage, "format"));
  if (format === "dense") return { format, dtype: readFloat(field(storage, "dtype")) };
  if (format !== "code4" && format !== "int8") {
    throw field(storage, "format").invalid("dense, code4 or int8", JSON.stringify(format));
  }
  const blockSize = checkBlockSize(field(storage, "blockSize"), columns, format === "int8");
  const minimums = field(storage, "minimums").value;
  if (typeof minimums !== "boolean") throw field(storage, "minimums").invalid("true or false", typeof minimums);
  const valueDType = readText(field(storage, "valueDType"));
  if (valueDType !== "f32" && valueDType !== "f16") {
    throw field(storage, "valueDType").invalid("f32 or f16", JSON.stringify(valueDType));
  }
  if (format === "code4") {
    const codebook = checkCount(field(storage, "codebook"), 0, codebooks - 1);
    return { format, blockSize, minimums, valueDType, codebook };
  }
  const rowScales = field(storage, "rowScales");
  return {
    format,
    blockSize,
    minimums,
    valueDType,
    multiplier: readNumber(field(storage, "multiplier")),
    rowScales: rowScales.value === null ? null : checkCount(rowScales, 0, 0xffff_ffff),
  };
}

/** A block of inputs as execution formats have it, and none that a piece begins inside. */
function checkBlockSize(reader: Reader, { start, end }: Range, wholeRow: boolean): number {
  const blockSize = checkCount(reader, 1);
  const inputs = end - start;
  if (wholeRow && blockSize === inputs) return blockSize;
  if (blockSize % MIN_BLOCK_SIZE === 0 && inputs % blockSize === 0) return blockSize;
  throw reader.invalid(`a multiple of ${MIN_BLOCK_SIZE} that divides ${inputs} columns`, `${blockSize}`);
}

function parseVector(reader: Reader, worldSize: number): StateVector {
  const vector = readObject(reader);
  const size = checkCount(field(vector, "size"), 1);
  const pieces = readList(field(vector, "pieces")).map((each): VectorPiece => {
    const piece = readObject(each);
    return { rank: checkCount(field(piece, "rank"), 0, worldSize - 1), range: readRange(field(piece, "range"), size) };
  });
  checkTiled(
    reader,
    [size],
    pieces.map(({ range }) => [range]),
  );
  return { name: readText(field(vector, "name")), dtype: readFloat(field(vector, "dtype")), size, pieces };
}

/** Every element is in some piece; several may hold it, as ranks share KV heads. */
function checkTiled(reader: Reader, shape: readonly number[], boxes: readonly Box[]): void {
  const gap = cellsOf(shape, boxes).find(({ owners }) => owners.length === 0);
  if (gap === undefined && boxes.every((box) => boxSize(box) > 0)) return;
  const where = gap === undefined ? "a piece of nothing" : `none for [${gap.box.map(({ start }) => start).join(", ")}]`;
  throw reader.invalid(`pieces that hold every element of [${shape.join(", ")}]`, where);
}

function readRange(reader: Reader, extent: number): Range {
  const range = readObject(reader);
  const end = checkCount(field(range, "end"), 1, extent);
  return { start: checkCount(field(range, "start"), 0, end - 1), end };
}

function readFloat(reader: Reader): FloatDType {
  const dtype = readText(reader);
  if (isDType(dtype) && isFloat(dtype)) return dtype;
  throw reader.invalid("f32, bf16 or f16", JSON.stringify(dtype));
}

function readNumber({ value, invalid }: Reader): number {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw invalid("a number", typeof value);
}

/** Name, dtype and shape that a tensor of a piece must have in its rank's file. */
export function pieceTensors(
  matrix: string,
  piece: MatrixPiece,
): readonly (readonly [string, DType, readonly number[]])[] {
  const rows = piece.rows.end - piece.rows.start;
  const columns = piece.columns.end - piece.columns.start;
  const { storage } = piece;
  const name = (plane: "" | "codes" | "scales" | "minimums"): string => pieceTensorName(matrix, piece, plane);
  if (storage.format === "dense") return [[name(""), storage.dtype, [rows, columns]]];
  const blocks = columns / storage.blockSize;
  const codes =
    storage.format === "code4" ? (["u8", [rows, columns / 2]] as const) : (["i8", [rows, columns]] as const);
  return [
    [name("codes"), ...codes],
    [name("scales"), storage.valueDType, [rows, blocks]],
    ...(storage.minimums ? [[name("minimums"), storage.valueDType, [rows, blocks]] as const] : []),
  ];
}
