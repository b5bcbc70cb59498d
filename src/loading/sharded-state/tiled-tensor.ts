/**
 * A matrix that lies in several tensors, each with a box of its rows and columns: what ranks saved, seen whole again. A
 * slice is read from the pieces that it touches and from no others, in as few reads as their layout allows.
 */
import type { CheckpointTensor } from "../../checkpoint/checkpoint.js";
import { forEachRun, readSlice, type SliceRange } from "../../checkpoint/slice.js";
import { type DType, dtypeBytes } from "../../core/dtype.js";
import { CheckpointError } from "../../core/errors.js";
import type { Range } from "../../parallel/partition.js";

/** Bytes staged at a time where a piece's rows do not lie side by side in what is asked for. */
const STAGING_BYTES = 1024 * 1024;

/** One piece: `tensor` is `[rows, columns]` of the box. */
export interface Tile {
  readonly rows: Range;
  readonly columns: Range;
  readonly tensor: CheckpointTensor;
}

export class TiledTensor implements CheckpointTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly [number, number];
  readonly file: string;
  /** The first of two that hold the same elements is read. */
  readonly #tiles: readonly Tile[];

  /** The tiles must hold every element of `shape`. */
  constructor(name: string, dtype: DType, shape: readonly [number, number], tiles: readonly Tile[]) {
    this.name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.file = tiles[0]?.tensor.file ?? "";
    this.#tiles = tiles;
  }

  /** Throws RangeError outside the tensor and inside an element. */
  read(destination: Uint8Array, byteOffset: number): void {
    const size = dtypeBytes(this.dtype);
    const [rows, columns] = this.shape;
    const first = byteOffset / size;
    const count = destination.length / size;
    const within = Number.isSafeInteger(first) && Number.isSafeInteger(count) && first >= 0;
    if (!within || first + count > rows * columns) {
      throw new RangeError(
        `${this.name}: bytes [${byteOffset}, +${destination.length}) are not whole elements within it`,
      );
    }
    // At most the rest of one row, whole rows, and the beginning of another.
    for (let done = 0; done < count; ) {
      const row = Math.floor((first + done) / columns);
      const column = (first + done) % columns;
      const left = count - done;
      const wholeRows = column === 0 ? Math.floor(left / columns) : 0;
      const taken = wholeRows > 0 ? wholeRows * columns : Math.min(columns - column, left);
      const ranges: readonly SliceRange[] =
        wholeRows > 0
          ? [
              { start: row, end: row + wholeRows },
              { start: 0, end: columns },
            ]
          : [
              { start: row, end: row + 1 },
              { start: column, end: column + taken },
            ];
      this.readSlice(ranges, destination.subarray(done * size, (done + taken) * size));
      done += taken;
    }
  }

  /** Fills `destination` with the slice, dense. */
  readSlice(ranges: readonly SliceRange[], destination: Uint8Array): void {
    const [rows = { start: 0, end: 0 }, columns = { start: 0, end: 0 }] = ranges;
    let left = [{ rows, columns }];
    for (const tile of this.#tiles) {
      if (left.length === 0) return;
      left = left.flatMap((box) => {
        const common = { rows: overlap(box.rows, tile.rows), columns: overlap(box.columns, tile.columns) };
        if (isEmpty(common.rows) || isEmpty(common.columns)) return [box];
        this.#copy(tile, common, { rows, columns }, destination);
        return without(box, common);
      });
    }
    const [gap] = left;
    if (gap === undefined || isEmpty(rows) || isEmpty(columns)) return;
    throw new CheckpointError(
      "INVALID_SHARDED_STATE",
      `${this.name}: expected a piece with row ${gap.rows.start}, column ${gap.columns.start} but there is none`,
      { tensor: this.name, file: this.file },
    );
  }

  #copy({ rows, columns, tensor }: Tile, box: TileBox, slice: TileBox, destination: Uint8Array): void {
    const size = dtypeBytes(this.dtype);
    const sliceColumns = extent(slice.columns);
    const boxColumns = extent(box.columns);
    const rowBytes = boxColumns * size;
    const dense = boxColumns === sliceColumns;
    const atOnce = dense ? extent(box.rows) : Math.max(1, Math.floor(STAGING_BYTES / rowBytes));
    for (let row = box.rows.start; row < box.rows.end; row += atOnce) {
      const end = Math.min(box.rows.end, row + atOnce);
      const inTile = [shifted({ start: row, end }, rows.start), shifted(box.columns, columns.start)];
      const first = ((row - slice.rows.start) * sliceColumns + box.columns.start - slice.columns.start) * size;
      if (dense) {
        readSlice(tensor, inTile, destination.subarray(first, first + (end - row) * rowBytes));
        continue;
      }
      const staged = new Uint8Array((end - row) * rowBytes);
      readSlice(tensor, inTile, staged);
      const target = [
        { start: 0, end: end - row },
        { start: 0, end: boxColumns },
      ];
      forEachRun([end - row, sliceColumns], size, target, (to, bytes, from) => {
        destination.set(staged.subarray(from, from + bytes), first + to);
      });
    }
  }
}

interface TileBox {
  readonly rows: Range;
  readonly columns: Range;
}

/** What is left of a box without a part of it: up to four boxes. */
function without({ rows, columns }: TileBox, part: TileBox): TileBox[] {
  const pieces = [
    { rows: { start: rows.start, end: part.rows.start }, columns },
    { rows: { start: part.rows.end, end: rows.end }, columns },
    { rows: part.rows, columns: { start: columns.start, end: part.columns.start } },
    { rows: part.rows, columns: { start: part.columns.end, end: columns.end } },
  ];
  return pieces.filter((piece) => !isEmpty(piece.rows) && !isEmpty(piece.columns));
}

function overlap(a: Range, b: Range): Range {
  return { start: Math.max(a.start, b.start), end: Math.min(a.end, b.end) };
}

const extent = ({ start, end }: Range): number => end - start;
const isEmpty = ({ start, end }: Range): boolean => start >= end;
const shifted = ({ start, end }: Range, by: number): Range => ({ start: start - by, end: end - by });
