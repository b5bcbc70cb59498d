/**
 * An open sharded state: the matrices and vectors of a model, each in pieces that ranks saved. Whoever loads sees them
 * whole, at any number of ranks; pieces of the rank's own number are preferred, so that a group of the same size reads
 * each its own files from end to end.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import type { Checkpoint, CheckpointTensor } from "../../checkpoint/checkpoint.js";
import { checkSameVersions, type FileVersion, type OpenFile } from "../../checkpoint/open-file.js";
import { RandomAccessFile } from "../../checkpoint/random-access-file.js";
import { SafetensorsFile } from "../../checkpoint/safetensors.js";
import type { DType } from "../../core/dtype.js";
import { CheckpointError, invariant } from "../../core/errors.js";
import { readJsonObject } from "../../core/json.js";
import { describeShape } from "../../core/tensor.js";
import { MIN_BLOCK_SIZE } from "../../kernels/execution-format.js";
import type { Range } from "../../parallel/partition.js";
import type { ExecutionStorage } from "../../quantization/execution-linear-method.js";
import type { CheckpointReader } from "../model-loader.js";
import {
  CHECKSUM_BYTES,
  MANIFEST_FILE,
  type MatrixPiece,
  type PieceStorage,
  parseManifest,
  pieceTensorName,
  pieceTensors,
  type StateFile,
  type StateManifest,
  type StateMatrix,
  type StateVector,
} from "./manifest.js";
import { readerOf } from "./manifest-reader.js";
import { dequantizedPlanes, type PiecePlanes, repeatedScales } from "./planes.js";
import { type Tile, TiledTensor } from "./tiled-tensor.js";

/** Bytes read at a time to verify them. */
const VERIFIED_BYTES = 1024 * 1024;

/** How a rank takes a matrix of codes. */
export type CodesView = Exclude<ExecutionStorage, { readonly kind: "dense" }>;

export class ShardedState implements Checkpoint {
  readonly manifest: StateManifest;
  readonly verification: { readonly bytes: number; readonly ms: number };
  readonly #directory: string;
  readonly #rank: number;
  readonly #files: readonly SafetensorsFile[];
  /** Tensors of all files of a rank. */
  readonly #tensorsOf: readonly ReadonlyMap<string, CheckpointTensor>[];
  readonly #matrices: ReadonlyMap<string, StateMatrix>;
  #tensors: ReadonlyMap<string, CheckpointTensor> | undefined;

  private constructor(
    directory: string,
    manifest: StateManifest,
    files: readonly SafetensorsFile[],
    rank: number,
    verification: ShardedState["verification"],
  ) {
    this.#directory = directory;
    this.manifest = manifest;
    this.#files = files;
    this.#rank = rank;
    this.verification = verification;
    this.#tensorsOf = tensorsByRank(manifest, files);
    this.#matrices = new Map(manifest.matrices.map((matrix) => [matrix.name, matrix]));
    this.#checkFiles();
  }

  /**
   * Opens a state, verifies this reader's share of its checksums unless it is told not to, and holds the files to the
   * manifest. Throws CheckpointError `INVALID_SHARDED_STATE`, `SHARDED_STATE_VERSION`, `CHECKSUM_MISMATCH`,
   * `MISSING_WEIGHT_FILE`, and what reading a file throws. After an error no file is left open.
   */
  static open(directory: string, reader: CheckpointReader): ShardedState {
    const manifest = readManifest(directory);
    checkPresent(directory, manifest.files);
    const started = performance.now();
    const { bytes, files: verified } = reader.verifyChecksums
      ? verify(directory, manifest.files, reader)
      : { bytes: 0, files: [] };
    const verification = { bytes, ms: performance.now() - started };
    const files: SafetensorsFile[] = [];
    try {
      for (const { name } of manifest.files)
        files.push(SafetensorsFile.open(join(directory, name), undefined, reader.observer));
      checkSameVersions([
        { name: "who verified it", files: verified },
        { name: "who reads it", files: files.flatMap(({ openFiles }) => openFiles) },
      ]);
      return new ShardedState(directory, manifest, files, reader.rank, verification);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /** Vectors, and matrices in floating-point numbers, by the names of their tensors. */
  get tensors(): ReadonlyMap<string, CheckpointTensor> {
    this.#tensors ??= new Map(
      [
        ...this.manifest.vectors.map((vector) => this.#vector(vector)),
        ...this.manifest.matrices.map((matrix) => this.dense(matrix.name)),
      ].map((tensor) => [tensor.name, tensor]),
    );
    return this.#tensors;
  }

  get bytesRead(): number {
    return this.#files.reduce((sum, file) => sum + file.bytesRead, 0);
  }

  get openFiles(): readonly OpenFile[] {
    return this.#files.flatMap(({ openFiles }) => openFiles);
  }

  close(): void {
    for (const file of this.#files) file.close();
  }

  matrix(name: string): StateMatrix | undefined {
    return this.#matrices.get(name);
  }

  /** dtype in which a matrix is stored whole; null where it is in codes. */
  denseDType(name: string): DType | null {
    const dtypes = new Set(
      this.#known(name).pieces.map(({ storage }) => (storage.format === "dense" ? storage.dtype : null)),
    );
    const [dtype = null] = dtypes;
    return dtypes.size === 1 ? dtype : null;
  }

  /**
   * How the codes of a matrix can be taken by who owns its `columns`: with the largest blocks that no boundary of a piece or
   * of the columns lies in. Null where there are none, or where pieces differ in more than that; then its values will do.
   */
  codesView(name: string, columns: Range): CodesView | null {
    const { pieces } = this.#known(name);
    const [first] = pieces;
    if (first === undefined || first.storage.format === "dense") return null;
    const alike = pieces.every(({ storage }) => sameCodes(storage, first.storage));
    if (!alike) return null;
    const { storage } = first;
    if (hasRowScales(pieces)) {
      const { minimums, valueDType } = storage;
      return { kind: "rowScales", multiplier: multiplierOf(storage), minimums, valueDType };
    }
    const boundaries = [
      columns.start,
      columns.end,
      ...pieces.flatMap((piece) => [piece.columns.start, blockSizeOf(piece)]),
    ];
    const blockSize = boundaries.reduce(greatestCommonDivisor, 0);
    if (blockSize % MIN_BLOCK_SIZE !== 0) return null;
    const codebook = storage.format === "code4" ? (this.manifest.codebooks[storage.codebook] ?? null) : null;
    return {
      kind: "blocks",
      execution: storage.format,
      blockSize,
      minimums: storage.minimums,
      valueDType: storage.valueDType,
      codebook,
      multiplier: multiplierOf(storage),
    };
  }

  /** The tensors that a view takes in place of the matrix: `NAME.weight.codes`, `.scales`, `.minimums`. */
  planes(name: string, view: CodesView): readonly CheckpointTensor[] {
    const { outputs, inputs, pieces } = this.#known(name);
    const ordered = this.#ordered(pieces);
    const [first] = pieces;
    invariant(first !== undefined && first.storage.format !== "dense", `${name} has no codes`);
    const isCode4 = first.storage.format === "code4";
    const width = isCode4 ? 2 : 1;
    const codes = ordered.map((piece): Tile => {
      const columns = { start: piece.columns.start / width, end: piece.columns.end / width };
      return { rows: piece.rows, columns, tensor: this.#plane(name, piece, "codes") };
    });
    const blocks = view.kind === "rowScales" ? 1 : inputs / view.blockSize;
    const perBlock = (plane: "scales" | "minimums"): CheckpointTensor => {
      const tiles = ordered.map((piece): Tile => {
        const stored = this.#plane(name, piece, plane);
        if (view.kind === "rowScales") return { rows: piece.rows, columns: { start: 0, end: 1 }, tensor: stored };
        const columns = { start: piece.columns.start / view.blockSize, end: piece.columns.end / view.blockSize };
        return { rows: piece.rows, columns, tensor: repeatedScales(stored, blockSizeOf(piece) / view.blockSize) };
      });
      return new TiledTensor(`${name}.weight.${plane}`, view.valueDType, [outputs, blocks], tiles);
    };
    const whole = new TiledTensor(`${name}.weight.codes`, isCode4 ? "u8" : "i8", [outputs, inputs / width], codes);
    return [whole, perBlock("scales"), ...(view.minimums ? [perBlock("minimums")] : [])];
  }

  /** The matrix as `NAME.weight`: as it is stored, or where it is in codes the values that they stand for, in f32. */
  dense(name: string): CheckpointTensor {
    const { outputs, inputs, pieces } = this.#known(name);
    const dtype = this.denseDType(name) ?? "f32";
    const tiles = this.#ordered(pieces).map((piece): Tile => {
      return { rows: piece.rows, columns: piece.columns, tensor: this.#values(name, piece) };
    });
    return new TiledTensor(`${name}.weight`, dtype, [outputs, inputs], tiles);
  }

  #values(name: string, piece: MatrixPiece): CheckpointTensor {
    const { storage } = piece;
    if (storage.format === "dense") return this.#plane(name, piece, "");
    const planes: PiecePlanes = {
      codes: this.#plane(name, piece, "codes"),
      scales: this.#plane(name, piece, "scales"),
      minimums: storage.minimums ? this.#plane(name, piece, "minimums") : null,
    };
    const codebook = storage.format === "code4" ? (this.manifest.codebooks[storage.codebook] ?? null) : null;
    return dequantizedPlanes(planes, storage, codebook);
  }

  #vector({ name, dtype, size, pieces }: StateVector): CheckpointTensor {
    const tiles = this.#ordered(pieces).map(({ rank, range }): Tile => {
      const stored = this.#stored(rank, name);
      const row: CheckpointTensor = {
        name,
        dtype,
        shape: [1, range.end - range.start],
        file: stored.file,
        read: (destination, byteOffset) => stored.read(destination, byteOffset),
      };
      return { rows: { start: 0, end: 1 }, columns: range, tensor: row };
    });
    const whole = new TiledTensor(name, dtype, [1, size], tiles);
    return { name, dtype, shape: [size], file: whole.file, read: (out, offset) => whole.read(out, offset) };
  }

  #plane(name: string, piece: MatrixPiece, plane: "" | "codes" | "scales" | "minimums"): CheckpointTensor {
    return this.#stored(piece.rank, pieceTensorName(name, piece, plane));
  }

  #stored(rank: number, name: string): CheckpointTensor {
    const tensor = this.#tensorsOf[rank]?.get(name);
    invariant(tensor !== undefined, `${name} of rank ${rank} was not checked`);
    return tensor;
  }

  /** Own pieces first: where several hold the same elements, the first is read. */
  #ordered<Piece extends { readonly rank: number }>(pieces: readonly Piece[]): readonly Piece[] {
    const own = (piece: Piece): number => (piece.rank === this.#rank ? 0 : 1);
    return pieces.toSorted((a, b) => own(a) - own(b));
  }

  #known(name: string): StateMatrix {
    const matrix = this.#matrices.get(name);
    invariant(matrix !== undefined, `${name} is no matrix of the state`);
    return matrix;
  }

  /** The tensors of the files are those of the manifest, and no others. */
  #checkFiles(): void {
    const expected = new Map<string, readonly [DType, readonly number[]]>();
    const expect = (rank: number, name: string, dtype: DType, shape: readonly number[]): void => {
      expected.set(`${rank} ${name}`, [dtype, shape]);
    };
    for (const { name, pieces } of this.manifest.matrices) {
      for (const piece of pieces) for (const each of pieceTensors(name, piece)) expect(piece.rank, ...each);
    }
    for (const { name, dtype, pieces } of this.manifest.vectors) {
      for (const { rank, range } of pieces) expect(rank, name, dtype, [range.end - range.start]);
    }
    for (const [key, [dtype, shape]] of expected) {
      const [rank = "", name = ""] = splitOnce(key);
      const tensor = this.#tensorsOf[Number(rank)]?.get(name);
      const wanted = describeShape(dtype, shape);
      const received = tensor === undefined ? "none" : describeShape(tensor.dtype, tensor.shape);
      if (wanted !== received) throw this.#inconsistent(name, `${wanted} in a file of rank ${rank}`, received);
    }
    const stored = this.#tensorsOf.flatMap((tensors, rank) => [...tensors.keys()].map((name) => `${rank} ${name}`));
    const surplus = stored.find((key) => !expected.has(key));
    if (surplus === undefined) return;
    const [rank, name = ""] = splitOnce(surplus);
    throw this.#inconsistent(name, "no such tensor", `one in a file of rank ${rank}`);
  }

  #inconsistent(tensor: string, expected: string, received: string): CheckpointError {
    const file = join(this.#directory, MANIFEST_FILE);
    const message = `${file}: ${tensor}: expected ${expected}, but received ${received}`;
    return new CheckpointError("INVALID_SHARDED_STATE", message, { file, tensor, expected, received });
  }
}

/** Throws as `parseManifest` does, or for a file that cannot be read. */
export function readManifest(directory: string): StateManifest {
  const file = join(directory, MANIFEST_FILE);
  return parseManifest(readerOf(readJsonObject(file), file));
}

function checkPresent(directory: string, files: readonly StateFile[]): void {
  const names = new Set(readdirSync(directory));
  const missing = files.find(({ name }) => !names.has(name));
  if (missing === undefined) return;
  const { name, rank } = missing;
  throw new CheckpointError(
    "MISSING_WEIGHT_FILE",
    `${join(directory, MANIFEST_FILE)}: expected ${name}, a file of rank ${rank}, but it is missing`,
    { file: join(directory, name), expected: name, received: "no file" },
  );
}

/**
 * Verifies every nth checksum, n being the number of readers, and the size of every file. Returns the bytes read, and of
 * which files. Throws CheckpointError `CHECKSUM_MISMATCH` naming the file.
 */
function verify(
  directory: string,
  files: readonly StateFile[],
  { rank, worldSize }: CheckpointReader,
): { readonly bytes: number; readonly files: readonly FileVersion[] } {
  const buffer = new Uint8Array(VERIFIED_BYTES);
  const verified: FileVersion[] = [];
  let bytes = 0;
  let next = 0;
  for (const { name, sizeBytes, checksums } of files) {
    const file = RandomAccessFile.open(join(directory, name));
    try {
      if (file.sizeBytes !== sizeBytes) throw mismatch(file.path, `${sizeBytes} bytes`, `${file.sizeBytes}`);
      verified.push({ path: file.path, version: file.version });
      for (const [i, expected] of checksums.entries()) {
        if (next++ % worldSize !== rank) continue;
        const start = i * CHECKSUM_BYTES;
        const end = Math.min(sizeBytes, start + CHECKSUM_BYTES);
        const received = checksumOf(file, start, end, buffer);
        bytes += end - start;
        if (received !== expected) {
          throw mismatch(file.path, `checksum ${hex(expected)} of bytes ${start} to ${end}`, hex(received));
        }
      }
    } finally {
      file.close();
    }
  }
  return { bytes, files: verified };
}

function checksumOf(file: RandomAccessFile, start: number, end: number, buffer: Uint8Array): number {
  let checksum = 0;
  for (let at = start; at < end; at += buffer.length) {
    const part = buffer.subarray(0, Math.min(buffer.length, end - at));
    file.read(part, at);
    checksum = crc32(part, checksum);
  }
  return checksum;
}

function mismatch(file: string, expected: string, received: string): CheckpointError {
  const message = `${file}: expected ${expected} but received ${received}; the state is damaged: write it again`;
  return new CheckpointError("CHECKSUM_MISMATCH", message, { file, expected, received });
}

const hex = (checksum: number): string => checksum.toString(16).padStart(8, "0");

function tensorsByRank(
  { files, worldSize }: StateManifest,
  opened: readonly SafetensorsFile[],
): readonly ReadonlyMap<string, CheckpointTensor>[] {
  const byRank = Array.from({ length: worldSize }, () => new Map<string, CheckpointTensor>());
  for (const [i, { rank, name: fileName }] of files.entries()) {
    for (const [name, tensor] of opened[i]?.tensors ?? []) {
      const other = byRank[rank]?.get(name);
      if (other !== undefined) {
        throw new CheckpointError(
          "DUPLICATE_TENSOR",
          `tensor ${JSON.stringify(name)}: expected it in one file of rank ${rank} but found it in ${other.file} and ${fileName}`,
          { tensor: name, expected: other.file, received: fileName, file: fileName },
        );
      }
      byRank[rank]?.set(name, tensor);
    }
  }
  return byRank;
}

function blockSizeOf({ storage }: MatrixPiece): number {
  return storage.format === "dense" ? 0 : storage.blockSize;
}

function multiplierOf(storage: PieceStorage): number {
  return storage.format === "int8" ? storage.multiplier : 1;
}

/** Whether codes of two pieces mean the same. */
function sameCodes(a: PieceStorage, b: PieceStorage): boolean {
  if (a.format === "dense" || b.format === "dense") return false;
  if (a.minimums !== b.minimums || a.valueDType !== b.valueDType) return false;
  if (a.format === "code4" && b.format === "code4") return a.codebook === b.codebook;
  return a.format === "int8" && b.format === "int8" && a.multiplier === b.multiplier;
}

/** Whether one scale holds for all inputs of each row: in every piece, and the same in all that hold parts of a row. */
function hasRowScales(pieces: readonly MatrixPiece[]): boolean {
  const byRows = new Map<string, number>();
  for (const { rows, storage } of pieces) {
    if (storage.format !== "int8" || storage.rowScales === null) return false;
    const key = `${rows.start} ${rows.end}`;
    const other = byRows.get(key);
    if (other !== undefined && other !== storage.rowScales) return false;
    byRows.set(key, storage.rowScales);
  }
  // Pieces whose rows overlap without being the same say nothing about each other.
  const starts = [...byRows.keys()].map((key) => key.split(" ").map(Number)).toSorted(([a = 0], [b = 0]) => a - b);
  return starts.every(([start = 0], i) => i === 0 || start >= (starts[i - 1]?.[1] ?? 0));
}

function greatestCommonDivisor(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return x;
}

function splitOnce(text: string): readonly string[] {
  const at = text.indexOf(" ");
  return [text.slice(0, at), text.slice(at + 1)];
}
