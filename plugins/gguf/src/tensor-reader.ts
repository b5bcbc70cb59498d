/** Reads any byte range of what a stored tensor holds, touching only the blocks that cover it. */
import {
  type BlockRuns,
  InternalError,
  type RandomAccessFile,
  type RowGroups,
  type StridedRuns,
} from "shardloom/plugin";
import { ScaleStash } from "./scale-stash.js";
import type { StoredTensor } from "./tensor-layout.js";
import {
  type BlockFormat,
  type BlockValues,
  isLaidOut,
  type LaidOutFormat,
  type Unpacked,
  writeValues,
} from "./unpacking.js";

/**
 * What can be read of a tensor in blocks, each row-major over its rows: its values in f32, or what they are made of. Codes
 * are as an execution format has them (two a byte, or one), scales and minimums one for each `scaleElements`.
 */
export type Plane = "values" | "codes" | "scales" | "minimums";

/** Runs of blocks of a tensor at equal distances, counted in blocks from its first. */
export interface BlockRange {
  readonly first: number;
  /** Blocks of a run. */
  readonly blocks: number;
  readonly stride: number;
  readonly runs: number;
}

/** Elements unpacked at a time: a multiple of every block size, small enough to stay in the cache. */
const TILE_ELEMENTS = 32_768;

/** The least number of elements that a scale holds for. */
const MIN_SCALE_ELEMENTS = 16;

/** Bytes of scales unpacked at a time: a multiple of what any block has. */
const VALUE_TILE_BYTES = 65_536;

const TILE_SCALES = TILE_ELEMENTS / MIN_SCALE_ELEMENTS;

export class TensorReader {
  readonly #file: RandomAccessFile;
  readonly #stash = new ScaleStash();
  readonly #values = new Float32Array(TILE_ELEMENTS);
  readonly #codes = new Uint8Array(TILE_ELEMENTS);
  /** By the dtype of a format's scales and minimums. */
  readonly #tiles: Readonly<Record<BlockFormat["valueDType"], Unpacked>> = {
    f16: { codes: this.#codes, scales: new Uint16Array(TILE_SCALES), minimums: new Uint16Array(TILE_SCALES) },
    f32: { codes: this.#codes, scales: new Float32Array(TILE_SCALES), minimums: new Float32Array(TILE_SCALES) },
  };
  #stored = new Uint8Array(0);
  /** For many blocks at a time. */
  readonly #valueTiles = {
    f16: { scales: new Uint16Array(VALUE_TILE_BYTES / 2), minimums: new Uint16Array(VALUE_TILE_BYTES / 2) },
    f32: { scales: new Float32Array(VALUE_TILE_BYTES / 4), minimums: new Float32Array(VALUE_TILE_BYTES / 4) },
  };
  /** Memory of headers that are kept here. */
  #headers = new Uint8Array(0);
  #kept: KeptHeaders | null = null;
  #bytesRead = 0;

  constructor(file: RandomAccessFile) {
    this.#file = file;
  }

  /** Bytes of tensor data read from the file so far. */
  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** Closes the file, and gives back what was kept of the last tensor. */
  close(): void {
    this.#file.close();
    this.#stash.release();
    this.#kept = null;
  }

  /** Bytes `[byteOffset, byteOffset + destination.length)` of a plane of the tensor, in the order of the file. */
  read(tensor: StoredTensor, plane: Plane, destination: Uint8Array, byteOffset: number): void {
    const { format } = tensor;
    if (format.blocks !== null) {
      this.#readBlocks(tensor, format.blocks, plane, destination, byteOffset);
      return;
    }
    if (plane !== "values") throw new InternalError(`${tensor.name} of type ${format.name} has no ${plane}`);
    this.#readFile(destination, tensor.position + byteOffset);
  }

  /** Runs of bytes of a tensor that is stored as it is, at equal distances; the first at `position` in the tensor. */
  readRuns(tensor: StoredTensor, { position, runBytes, stride, runs }: StridedRuns, destination: Uint8Array): void {
    const gapless = stride === runBytes || runs === 1;
    const whole = { position: tensor.position + position, runBytes: runBytes * runs, stride: 0, runs: 1 };
    this.#file.readRuns(destination, gapless ? whole : { ...whole, runBytes, stride, runs }, tensor.name);
    this.#bytesRead += destination.length;
  }

  /**
   * The codes of runs of blocks, one run after another, where the format is one that the file itself can take apart; returns
   * false where it is not. What is beside the codes of these blocks is kept for who reads their scales.
   */
  readCodes(tensor: StoredTensor, ranges: readonly BlockRange[], destination: Uint8Array): boolean {
    const { blocks, blockElements } = tensor.format;
    if (blocks === null) return false;
    const codeBytes = planeBytes(blocks, "codes", blockElements);
    return this.#readParts(tensor, ranges, null, ({ layout }, strided, { done, end, headers }) => {
      const codes = destination.subarray(done * codeBytes, end * codeBytes);
      this.#file.readBlocks(layout, strided, { codes, headers }, tensor.name);
    });
  }

  /**
   * The same of whole rows of `rowBlocks` blocks, to row `firstRow` of a matrix in groups and the rows after it; scales to
   * their place beside it, where that is given and headers are scales.
   */
  readCodeGroups(
    tensor: StoredTensor,
    ranges: readonly BlockRange[],
    groups: RowGroups,
    firstRow: number,
    rowBlocks: number,
  ): boolean {
    const scales = headersPlace(
      tensor,
      groups,
      { start: firstRow, end: firstRow + countBlocks(ranges) / rowBlocks },
      rowBlocks,
    );
    return this.#readParts(tensor, ranges, scales, ({ layout }, strided, { done, headers }) => {
      const to = { groups, firstRow: firstRow + done / rowBlocks, rowBlocks, headers };
      this.#file.readBlockGroups(layout, strided, to, tensor.name);
    });
  }

  /**
   * Calls `read` for each of some runs of blocks, `done` to `end` of all, and keeps the headers that it reads: in `place`, or in
   * memory of its own where that is null.
   */
  #readParts(
    tensor: StoredTensor,
    ranges: readonly BlockRange[],
    place: Uint8Array | null,
    read: (
      format: LaidOutFormat,
      strided: BlockRuns,
      part: { readonly done: number; readonly end: number; readonly headers: Uint8Array },
    ) => void,
  ): boolean {
    const { blocks, blockBytes } = tensor.format;
    if (blocks === null || !isLaidOut(blocks)) return false;
    this.#stashKept(tensor);
    const { layout } = blocks;
    const needed = countBlocks(ranges) * layout.headerBytes;
    if (place === null && this.#headers.length < needed) this.#headers = new Uint8Array(needed);
    const all = place ?? this.#headers.subarray(0, needed);
    let done = 0;
    for (const range of ranges) {
      const end = done + range.blocks * range.runs;
      const headers = all.subarray(done * layout.headerBytes, end * layout.headerBytes);
      const position = tensor.position + range.first * blockBytes;
      const strided = { position, blocks: range.blocks, stride: range.stride * blockBytes, runs: range.runs };
      read(blocks, strided, { done, end, headers });
      this.#bytesRead += (end - done) * blockBytes;
      done = end;
    }
    this.#kept = { tensor, ranges, headers: all, isOwn: place === null };
    return true;
  }

  /** Scales or minimums of runs of blocks whose codes were read last; returns false where these were others. */
  readValues(
    tensor: StoredTensor,
    plane: "scales" | "minimums",
    ranges: readonly BlockRange[],
    destination: Uint8Array,
  ): boolean {
    const { blocks, blockElements } = tensor.format;
    const kept = this.#kept;
    if (kept?.tensor !== tensor || !sameRanges(kept.ranges, ranges)) return false;
    if (blocks === null || !isLaidOut(blocks)) return false;
    const unit = planeBytes(blocks, plane, blockElements);
    const { headerBytes } = blocks.layout;
    const count = countBlocks(ranges);
    if (!kept.isOwn) {
      this.#kept = null;
      return isSameMemory(kept.headers, destination);
    }
    if (blocks.headersAreScales) {
      destination.set(kept.headers);
      return true;
    }
    const tile = this.#valueTiles[blocks.valueDType];
    const tileBlocks = VALUE_TILE_BYTES / unit;
    for (let block = 0; block < count; block += tileBlocks) {
      const end = Math.min(count, block + tileBlocks);
      const headers = kept.headers.subarray(block * headerBytes, end * headerBytes);
      blocks.readHeaders(headers, end - block, tile.scales, tile.minimums);
      destination.set(bytes(tile[plane]).subarray(0, (end - block) * unit), block * unit);
    }
    return true;
  }

  /** Puts what was kept beside the last codes where `read` finds it, unless it was of another tensor, or is no longer ours. */
  #stashKept(tensor: StoredTensor): void {
    const kept = this.#kept;
    this.#kept = null;
    const { blocks, blockElements } = tensor.format;
    if (kept?.tensor !== tensor || !kept.isOwn || blocks === null || !isLaidOut(blocks)) return;
    const stash = this.#stash;
    stash.prepare(tensor, blockElements / blocks.scaleElements);
    let at = 0;
    for (const { first, stride, runs, blocks: count } of kept.ranges) {
      for (let run = 0; run < runs; run++) {
        const block = first + run * stride;
        blocks.readHeaders(kept.headers.subarray(at), count, stash.scales(block, count), stash.minimums(block, count));
        stash.note(block, count);
        at += count * blocks.layout.headerBytes;
      }
    }
  }

  #readBlocks(
    tensor: StoredTensor,
    blocks: BlockFormat,
    plane: Plane,
    destination: Uint8Array,
    byteOffset: number,
  ): void {
    const { blockElements } = tensor.format;
    const unit = planeBytes(blocks, plane, blockElements);
    const end = byteOffset + destination.length;
    const lastBlock = Math.ceil(end / unit);
    const tileBlocks = TILE_ELEMENTS / blockElements;
    for (let block = Math.floor(byteOffset / unit); block < lastBlock; block += tileBlocks) {
      const count = Math.min(tileBlocks, lastBlock - block);
      const decoded = this.#decode(tensor, blocks, plane, block, count);
      // Where the range starts or ends inside this tile, in bytes of the plane.
      const tileStart = block * unit;
      const from = Math.max(byteOffset - tileStart, 0);
      const to = Math.min(end - tileStart, count * unit);
      destination.set(decoded.subarray(from, to), tileStart + from - byteOffset);
    }
  }

  /** `count` blocks of a plane; valid until the next call. */
  #decode(tensor: StoredTensor, blocks: BlockFormat, plane: Plane, block: number, count: number): Uint8Array {
    const { blockElements } = tensor.format;
    if (plane === "values") {
      // Of a tensor that is read as values nothing else is read: nothing is kept of it.
      const tile = this.#tiles[blocks.valueDType];
      blocks.unpack(this.#readStored(tensor, block, count), count, tile);
      writeValues(blocks, tile, count * blockElements, this.#values);
      return bytes(this.#values);
    }
    this.#stashKept(tensor);
    const stash = this.#stash;
    stash.prepare(tensor, blockElements / blocks.scaleElements);
    if (plane === "codes" || !stash.knows(block, count)) {
      const scales = stash.scales(block, count);
      const minimums = stash.minimums(block, count);
      blocks.unpack(this.#readStored(tensor, block, count), count, { codes: this.#codes, scales, minimums });
      stash.note(block, count);
    }
    if (plane === "codes") return this.#codes;
    return bytes(plane === "scales" ? stash.scales(block, count) : stash.minimums(block, count));
  }

  #readStored(tensor: StoredTensor, block: number, count: number): Uint8Array {
    const { blockBytes } = tensor.format;
    if (this.#stored.length < count * blockBytes) this.#stored = new Uint8Array(count * blockBytes);
    const stored = this.#stored.subarray(0, count * blockBytes);
    this.#readFile(stored, tensor.position + block * blockBytes);
    return stored;
  }

  #readFile(destination: Uint8Array, position: number): void {
    this.#file.read(destination, position);
    this.#bytesRead += destination.length;
  }
}

/** Headers of the codes that were read last, in the order of their ranges. */
interface KeptHeaders {
  readonly tensor: StoredTensor;
  readonly ranges: readonly BlockRange[];
  readonly headers: Uint8Array;
  /** Otherwise they are where whoever asked for the codes wants the scales, and may be something else when that is read. */
  readonly isOwn: boolean;
}

/** Where the headers of rows may be read to at once: to the place of their scales, if that is what they are; else null. */
function headersPlace(
  { format }: StoredTensor,
  { scales }: RowGroups,
  rows: { readonly start: number; readonly end: number },
  rowBlocks: number,
): Uint8Array | null {
  const { blocks } = format;
  if (scales === undefined || blocks === null || !isLaidOut(blocks) || !blocks.headersAreScales) return null;
  if (scales.rowBytes !== rowBlocks * blocks.layout.headerBytes) return null;
  return scales.matrix.subarray(rows.start * scales.rowBytes, rows.end * scales.rowBytes);
}

function isSameMemory(one: Uint8Array, other: Uint8Array): boolean {
  return one.buffer === other.buffer && one.byteOffset === other.byteOffset && one.length === other.length;
}

function countBlocks(ranges: readonly BlockRange[]): number {
  return ranges.reduce((sum, { blocks, runs }) => sum + blocks * runs, 0);
}

function sameRanges(some: readonly BlockRange[], others: readonly BlockRange[]): boolean {
  return (
    some.length === others.length &&
    some.every((range, i) => {
      const other = others[i];
      return (
        range.first === other?.first &&
        range.blocks === other.blocks &&
        range.stride === other.stride &&
        range.runs === other.runs
      );
    })
  );
}

/** Bytes that `elements` elements of a plane take. */
export function planeBytes(blocks: BlockFormat, plane: Plane, elements: number): number {
  switch (plane) {
    case "values":
      return elements * 4;
    case "codes":
      return blocks.execution === "code4" ? elements / 2 : elements;
    case "scales":
    case "minimums":
      return (elements / blocks.scaleElements) * valueBytes(blocks);
  }
}

/** Bytes of a scale or a minimum. */
export function valueBytes({ valueDType }: BlockFormat): number {
  return valueDType === "f16" ? 2 : 4;
}

function bytes({ buffer, byteOffset, byteLength }: BlockValues): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
