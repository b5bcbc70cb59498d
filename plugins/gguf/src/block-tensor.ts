/**
 * A tensor in a block format. To whoever does not know the class it is an f32 tensor of the exact values that its blocks
 * stand for; the quantization config knows it, and takes its codes, scales and minimums instead.
 */
import type { CheckpointTensor, RowGroups } from "shardloom/plugin";
import { type ReadBytes, rowsInFile, unpermuted } from "./row-order.js";
import type { StoredTensor } from "./tensor-layout.js";
import { type BlockRange, type Plane, planeBytes, type TensorReader, valueBytes } from "./tensor-reader.js";
import { type BlockFormat, isLaidOut } from "./unpacking.js";

export class BlockTensor implements CheckpointTensor {
  readonly name: string;
  readonly dtype = "f32";
  readonly shape: readonly number[];
  readonly file: string;
  readonly blocks: BlockFormat;
  readonly #stored: StoredTensor;
  readonly #reader: TensorReader;
  readonly #rotaryHeads: number | null;
  readonly #readValues: ReadBytes;

  /** `rotaryHeads`: heads whose rotary pairs lie side by side in the file; null for rows in their own order. */
  constructor(
    origin: { readonly name: string; readonly file: string; readonly rotaryHeads: number | null },
    stored: StoredTensor,
    blocks: BlockFormat,
    reader: TensorReader,
  ) {
    this.name = origin.name;
    this.file = origin.file;
    this.shape = stored.shape;
    this.blocks = blocks;
    this.#stored = stored;
    this.#reader = reader;
    this.#rotaryHeads = origin.rotaryHeads;
    this.#readValues = this.#plane("values");
  }

  /** Elements of a block: none can be had without the others. */
  get blockElements(): number {
    return this.#stored.format.blockElements;
  }

  /** Whether codes can be taken apart straight to groups of rows, where no rank's inputs are cut inside a block. */
  get readsRowGroups(): boolean {
    return isLaidOut(this.blocks) && planeBytes(this.blocks, "codes", this.blockElements) % 4 === 0;
  }

  read(destination: Uint8Array, byteOffset: number): void {
    this.#readValues(destination, byteOffset);
  }

  /**
   * What the values of a matrix `[rows, columns]` are made of, as tensors named below its own: `.codes` (u8
   * `[rows, columns / 2]` or i8 `[rows, columns]`), `.scales` and, where the format has them, `.minimums` (f16 or f32
   * `[rows, columns / blockSize]`). A `blockSize` that divides the format's repeats its scales.
   */
  planes(blockSize: number): readonly CheckpointTensor[] {
    const [rows = 0, columns = 0] = this.shape;
    const { execution, scaleElements, hasMinimums, valueDType } = this.blocks;
    const repeats = scaleElements / blockSize;
    const tensor = (plane: Plane, dtype: CheckpointTensor["dtype"], width: number, read: ReadBytes) => {
      return { name: `${this.name}.${plane}`, dtype, shape: [rows, width], file: this.file, read };
    };
    const perBlock = (plane: "scales" | "minimums"): CheckpointTensor => {
      const read = repeated(this.#plane(plane), repeats, valueBytes(this.blocks));
      const values = tensor(plane, valueDType, columns / blockSize, read);
      if (repeats !== 1) return values;
      return { ...values, readSlice: (ranges, destination) => this.#readValuesOf(plane, ranges, destination) };
    };
    const readSlice: CheckpointTensor["readSlice"] = (ranges, destination) => this.#readCodes(ranges, destination);
    const readRowGroups: CheckpointTensor["readRowGroups"] = (ranges, groups, firstRow) =>
      this.#readCodeGroups(ranges, groups, firstRow);
    const codes =
      execution === "code4"
        ? { ...tensor("codes", "u8", columns / 2, this.#plane("codes")), readSlice, readRowGroups }
        : { ...tensor("codes", "i8", columns, this.#plane("codes")), readSlice, readRowGroups };
    return [codes, perBlock("scales"), ...(hasMinimums ? [perBlock("minimums")] : [])];
  }

  /** A slice of the codes: whole blocks of rows in as few reads as their order in the file allows, else run by run. */
  #readCodes(ranges: readonly Slice[], destination: Uint8Array): void {
    const blocks = this.#blockRanges(ranges, planeBytes(this.blocks, "codes", this.#stored.format.blockElements));
    if (blocks !== null && this.#reader.readCodes(this.#stored, blocks, destination)) return;
    this.#readRows("codes", ranges, destination, 1);
  }

  #readCodeGroups(ranges: readonly Slice[], groups: RowGroups, firstRow: number): boolean {
    const unit = planeBytes(this.blocks, "codes", this.blockElements);
    const blocks = this.#blockRanges(ranges, unit);
    return (
      blocks !== null && this.#reader.readCodeGroups(this.#stored, blocks, groups, firstRow, groups.rowBytes / unit)
    );
  }

  /** A slice of the scales or minimums: those of the codes that were read before it, in one piece, else run by run. */
  #readValuesOf(plane: "scales" | "minimums", ranges: readonly Slice[], destination: Uint8Array): void {
    const perBlock = this.#stored.format.blockElements / this.blocks.scaleElements;
    const blocks = this.#blockRanges(ranges, perBlock);
    if (blocks !== null && this.#reader.readValues(this.#stored, plane, blocks, destination)) return;
    this.#readRows(plane, ranges, destination, valueBytes(this.blocks));
  }

  /** Whole blocks of a slice whose columns count `unit` to a block, in the order of its rows; null for other slices. */
  #blockRanges([row, column]: readonly Slice[], unit: number): readonly BlockRange[] | null {
    const [rows = 0, columns = 0] = this.shape;
    if (row === undefined || column === undefined) return null;
    if (column.start % unit !== 0 || column.end % unit !== 0) return null;
    const rowBlocks = columns / this.#stored.format.blockElements;
    const [start, end] = [column.start / unit, column.end / unit];
    if (start === end) return null;
    return rowsInFile(row, rows, this.#rotaryHeads).map(({ first, stride, runs }) =>
      joined({ first: first * rowBlocks + start, blocks: end - start, stride: stride * rowBlocks, runs }),
    );
  }

  #readRows(plane: Plane, [row, column]: readonly Slice[], destination: Uint8Array, elementBytes: number): void {
    const read = this.#plane(plane);
    const rowBytes = planeBytes(this.blocks, plane, this.shape[1] ?? 0);
    const start = (column?.start ?? 0) * elementBytes;
    const width = (column?.end ?? 0) * elementBytes - start;
    for (let r = row?.start ?? 0, at = 0; r < (row?.end ?? 0); r++, at += width) {
      read(destination.subarray(at, at + width), r * rowBytes + start);
    }
  }

  /** Reads a plane in the published order of rows. Throws RangeError outside it. */
  #plane(plane: Plane): ReadBytes {
    const [rows = 1, ...inner] = this.shape;
    const rowBytes = planeBytes(
      this.blocks,
      plane,
      inner.reduce((product, extent) => product * extent, 1),
    );
    const stored: ReadBytes = (destination, byteOffset) => {
      this.#reader.read(this.#stored, plane, destination, byteOffset);
    };
    const heads = this.#rotaryHeads;
    return bounded(
      `${this.name}, its ${plane},`,
      rows * rowBytes,
      heads === null ? stored : unpermuted(stored, { rows, rowBytes }, heads),
    );
  }
}

/** Indices of one dimension. */
interface Slice {
  readonly start: number;
  readonly end: number;
}

/** Runs that follow each other without a gap are one. */
function joined(range: BlockRange): BlockRange {
  if (range.stride !== range.blocks) return range;
  return { first: range.first, blocks: range.blocks * range.runs, stride: 0, runs: 1 };
}

/** Refuses ranges outside `sizeBytes`. */
export function bounded(what: string, sizeBytes: number, read: ReadBytes): ReadBytes {
  return (destination, byteOffset) => {
    const end = byteOffset + destination.length;
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || end > sizeBytes) {
      throw new RangeError(`${what}: bytes ${byteOffset} to ${end} are outside its ${sizeBytes} bytes`);
    }
    read(destination, byteOffset);
  };
}

/** A vector of elements of `width` bytes in which every element of another one comes `repeats` times. */
function repeated(read: ReadBytes, repeats: number, width: number): ReadBytes {
  if (repeats === 1) return read;
  return (destination, byteOffset) => {
    const end = byteOffset + destination.length;
    const stride = width * repeats;
    const firstStored = Math.floor(byteOffset / stride);
    const stored = new Uint8Array((Math.ceil(end / stride) - firstStored) * width);
    read(stored, firstStored * width);
    for (let at = byteOffset; at < end; at++) {
      const element = Math.floor(at / stride) - firstStored;
      destination[at - byteOffset] = stored[element * width + (at % width)] ?? 0;
    }
  };
}
