/**
 * A parameter: where one rank's shard of a weight is stored, and the record of what has been written into it. It knows
 * no layer and no rank; layers compute extents, a parameter copies and keeps account. A parameter is complete when the
 * extents written along its output dimension tile it exactly.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { placeRows, type RowGroups, readRowGroups } from "../checkpoint/row-groups.js";
import type { SharedItem, SharedReads } from "../checkpoint/shared-reads.js";
import { readSlice } from "../checkpoint/slice.js";
import { convertFloats, dtypeBytes, isFloat } from "../core/dtype.js";
import { CheckpointError, InternalError, invariant } from "../core/errors.js";
import { bytesOf, describeShape, elementCount, isVirtual, type Tensor } from "../core/tensor.js";
import { type Range, rangeSize } from "../parallel/partition.js";
import type { Extent, ParameterSpec, ShardId } from "../quantization/contract.js";
import { cutSlice, type HeldRows } from "./held-rows.js";

/** Bytes converted at a time when a loaded weight has another dtype than its parameter. */
const CONVERSION_BYTES = 1024 * 1024;

/** Bytes that one of several ranks reads for all of them at a time: enough of them, so that all have something to read. */
const SHARED_BYTES = 1024 * 1024;

const byNobodyElse = (): readonly HeldRows[] => [];

/** What was loaded into a parameter: a slice of one checkpoint tensor, and the extent it fills. */
export interface LoadedSlice extends Extent {
  /** Name of the checkpoint tensor, as the layers saw it. */
  readonly tensor: string;
  readonly file: string;
  /** Shape of the whole tensor. */
  readonly shape: readonly number[];
  /** One range a dimension. */
  readonly ranges: readonly Range[];
  /** Which logical matrix of a fused layer it is; null for the only one, or for all. */
  readonly shardId: ShardId | null;
}

export class Parameter {
  /** `model.layers.0.self_attn.qkv_proj.weight` */
  readonly name: string;
  readonly spec: ParameterSpec;
  readonly tensor: Tensor;
  readonly rank: number;
  readonly #shared: SharedReads | undefined;
  #loaded: LoadedSlice[] = [];
  #scales: Parameter | null = null;
  #loadedExtent = 0;

  /** With `shared`, what other ranks load as well is read by one of them. */
  constructor(name: string, spec: ParameterSpec, tensor: Tensor, rank: number, shared?: SharedReads) {
    this.name = name;
    this.spec = spec;
    this.tensor = tensor;
    this.rank = rank;
    this.#shared = shared;
  }

  /** Storage elements along the output dimension. */
  get extent(): number {
    return this.tensor.shape[this.dim] ?? 1;
  }

  /** Dimension along which parts are placed and accounted for. */
  get dim(): number {
    return this.spec.outputDim ?? 0;
  }

  /**
   * Has `scales`, a matrix of as many rows, be filled with this one where both are read together. Only its memory is: what
   * its account says comes from its own loading.
   */
  pairWith(scales: Parameter): void {
    this.#scales = scales;
  }

  /**
   * Copies `source[ranges]` into the parameter at `offset` along its output dimension; all other dimensions must be
   * covered whole. Converts among float dtypes, rounding to nearest even. `held` says of these rows, one after another,
   * how many ranks load them, and is asked only where ranks share reads. Throws CheckpointError `SHAPE_MISMATCH`,
   * `DTYPE_MISMATCH`, `DUPLICATE_WEIGHT`, `FLOAT_OVERFLOW`, or what reading throws.
   */
  load(
    source: CheckpointTensor,
    ranges: readonly Range[],
    offset = 0,
    shardId: ShardId | null = null,
    held: () => readonly HeldRows[] = byNobodyElse,
  ): void {
    // A scalar on disk is a vector of one here.
    const shape = ranges.length === 0 ? [1] : ranges.map((range) => range.end - range.start);
    const size = shape[this.dim] ?? 0;
    const local = this.tensor.shape;
    const fits = shape.length === local.length && shape.every((extent, i) => i === this.dim || extent === local[i]);
    if (!fits || offset < 0 || offset + size > this.extent) {
      throw this.mismatch(source, `[${local.join(", ")}] or a part of it`, `[${shape.join(", ")}] at ${offset}`);
    }
    this.#checkDType(source);
    const { name, file } = source;
    this.#account({ tensor: name, file, shape: source.shape, ranges, offset, size, shardId });
    // The partition and the account are all there is to do where there are no bytes.
    if (isVirtual(this.tensor)) return;
    const outer = elementCount(local.slice(0, this.dim));
    const unitBytes = elementCount(local.slice(this.dim + 1)) * dtypeBytes(this.tensor.dtype);
    const bytes = bytesOf(this.tensor);
    if (this.spec.rowGroups !== undefined) {
      const groups = { matrix: bytes, rowBytes: unitBytes, codeBits: this.spec.rowGroups };
      this.#loadGroups(source, ranges, groups, offset, held);
      return;
    }
    if (outer === 1) {
      this.#readHeld(source, ranges, bytes.subarray(offset * unitBytes, (offset + size) * unitBytes), held);
      return;
    }
    const staging = new Uint8Array(outer * size * unitBytes);
    // Parts of it would not lie together: it is shared as a whole or not at all.
    this.#readHeld(source, ranges, staging, () => {
      const rows = held();
      return rows.length > 1 ? [] : rows;
    });
    for (let i = 0; i < outer; i++) {
      const run = staging.subarray(i * size * unitBytes, (i + 1) * size * unitBytes);
      bytes.set(run, (i * this.extent + offset) * unitBytes);
    }
  }

  /** Reads rows to where they belong in groups; those that several ranks load are read for all of them in the order of rows. */
  #loadGroups(
    source: CheckpointTensor,
    ranges: readonly Range[],
    groups: RowGroups,
    offset: number,
    held: () => readonly HeldRows[],
  ): void {
    const { dtype } = this.tensor;
    invariant(this.dim === 0 && ranges.length === 2 && dtype === source.dtype, `${source.name} is no matrix of codes`);
    const shared = this.#shared;
    const [rows = { start: 0, end: 0 }] = ranges;
    const sizeBytes = rangeSize(rows) * groups.rowBytes;
    const pieces = shared === undefined || sizeBytes < shared.leastBytes ? [] : cutSlice(ranges, 0, held());
    if (shared === undefined || pieces.every(({ holders }) => holders === 1)) {
      // Scales go as the codes do: those that ranks share are read on their own.
      const scales = this.#scales?.tensor;
      const placed = scales === undefined ? groups : { ...groups, scales: matrixOf(scales) };
      readRowGroups(source, ranges, placed, offset);
      return;
    }
    for (const piece of pieces) {
      const [own = rows] = piece.ranges;
      const at = offset + own.start - rows.start;
      if (piece.holders === 1) readRowGroups(source, piece.ranges, groups, at);
      else {
        const read = new Uint8Array(rangeSize(own) * groups.rowBytes);
        this.#readShared(source, piece.ranges, read, shared, piece.holders);
        placeRows(read, groups, at);
      }
    }
  }

  /** Reads a slice, those parts of it that several ranks load once for all of them. */
  #readHeld(
    source: CheckpointTensor,
    ranges: readonly Range[],
    destination: Uint8Array,
    held: () => readonly HeldRows[],
  ): void {
    const shared = this.#shared;
    if (shared === undefined || destination.length < shared.leastBytes) {
      this.#read(source, ranges, destination);
      return;
    }
    for (const piece of cutSlice(ranges, this.dim, held())) {
      const part = destination.subarray(piece.start * destination.length, piece.end * destination.length);
      if (piece.holders > 1) this.#readShared(source, piece.ranges, part, shared, piece.holders);
      else this.#read(source, piece.ranges, part);
    }
  }

  #readShared(
    source: CheckpointTensor,
    ranges: readonly Range[],
    destination: Uint8Array,
    shared: SharedReads,
    holders: number,
  ): void {
    const { name, dtype, shape } = source;
    const [first = { start: 0, end: 1 }, ...inner] = ranges;
    const rows = rangeSize(first);
    const rowBytes = inner.reduce((bytes, range) => bytes * rangeSize(range), dtypeBytes(dtype));
    const step = Math.max(1, Math.floor(SHARED_BYTES / Math.max(1, rowBytes)));
    const items: SharedItem[] = [];
    for (let row = 0; row < rows; row += step) {
      const start = first.start + row;
      const end = Math.min(first.end, start + step);
      const slice = ranges.length === 0 ? [] : [{ start, end }, ...inner];
      items.push({
        key: `${name} ${dtype} [${shape.join()}] ${slice.map((range) => `${range.start}-${range.end}`).join()}`,
        sizeBytes: (end - start) * rowBytes,
        fill: (bytes) => readSlice(source, slice, bytes),
      });
    }
    const pieces = shared.acquire(items, holders);
    const placedRowBytes = destination.length / Math.max(1, rows);
    try {
      for (const [i, { bytes }] of pieces.entries()) this.#place(source, bytes, destination, i * step * placedRowBytes);
    } finally {
      for (const piece of pieces) piece.release();
    }
  }

  /** Bytes as the checkpoint has them, from byte `at` of the destination on. */
  #place({ name, dtype: from }: CheckpointTensor, bytes: Uint8Array, destination: Uint8Array, at: number): void {
    const to = this.tensor.dtype;
    if (from === to) {
      destination.set(bytes, at);
      return;
    }
    invariant(isFloat(from) && isFloat(to), `${name}: the dtype was not checked`);
    const size = (bytes.length / dtypeBytes(from)) * dtypeBytes(to);
    convertFloats(bytes, from, destination.subarray(at, at + size), to, name);
  }

  #read(source: CheckpointTensor, ranges: readonly Range[], destination: Uint8Array): void {
    if (source.dtype === this.tensor.dtype) readSlice(source, ranges, destination);
    else this.#convert(source, ranges, destination);
  }

  /** Where its contents came from, in the order of loading. */
  get loaded(): readonly LoadedSlice[] {
    return this.#loaded;
  }

  /** How much of `extent` something has been loaded into. */
  get loadedExtent(): number {
    return this.#loadedExtent;
  }

  /** Bytes that so much of `extent` has. */
  bytesOfExtent(size: number): number {
    const { shape, dtype } = this.tensor;
    return (size * elementCount(shape) * dtypeBytes(dtype)) / Math.max(1, this.extent);
  }

  /** Extents that nothing has been loaded into yet, in order. */
  missing(): readonly Extent[] {
    const gaps: Extent[] = [];
    let end = 0;
    const slices = this.#loaded;
    for (const { offset, size } of slices.length < 2 ? slices : slices.toSorted((a, b) => a.offset - b.offset)) {
      if (offset > end) gaps.push({ offset: end, size: offset - end });
      end = offset + size;
    }
    if (end < this.extent) gaps.push({ offset: end, size: this.extent - end });
    return gaps;
  }

  /** The error of a loaded weight that does not fit. */
  mismatch(source: CheckpointTensor, expected: string, received: string): CheckpointError {
    return new CheckpointError(
      "SHAPE_MISMATCH",
      `${source.name}: expected ${expected} for ${this.name} on rank ${this.rank} but received ${received} ` +
        `(${describeShape(source.dtype, source.shape)} in ${source.file})`,
      { tensor: source.name, expected, received, rank: this.rank, file: source.file },
    );
  }

  #account(slice: LoadedSlice): void {
    const overlap = this.#loaded.find((other) => {
      return other.offset < slice.offset + slice.size && slice.offset < other.offset + other.size;
    });
    if (overlap !== undefined) {
      const { tensor, file } = slice;
      const received = `${overlap.tensor} in ${overlap.file}`;
      throw new CheckpointError(
        "DUPLICATE_WEIGHT",
        `${this.name} on rank ${this.rank}: ${tensor} in ${file} would overwrite what came from ${received}`,
        { tensor, expected: "one source", received, rank: this.rank, file },
      );
    }
    this.#loaded.push(slice);
    this.#loadedExtent += slice.size;
  }

  #checkDType({ name, dtype, file }: CheckpointTensor): void {
    const to = this.tensor.dtype;
    if (dtype === to || (isFloat(dtype) && isFloat(to))) return;
    throw new CheckpointError(
      "DTYPE_MISMATCH",
      `${name}: expected ${to} for ${this.name} but received ${dtype} in ${file}`,
      { tensor: name, expected: to, received: dtype, rank: this.rank, file },
    );
  }

  #convert(source: CheckpointTensor, ranges: readonly Range[], destination: Uint8Array): void {
    const from = source.dtype;
    const to = this.tensor.dtype;
    invariant(isFloat(from) && isFloat(to), `${source.name}: the dtype was not checked`);
    const first = ranges[0] ?? { start: 0, end: 1 };
    const rows = first.end - first.start;
    if (rows === 0) return;
    const rowElements = destination.length / dtypeBytes(to) / rows;
    const step = Math.max(1, Math.floor(CONVERSION_BYTES / Math.max(1, rowElements * dtypeBytes(from))));
    const staging = new Uint8Array(Math.min(step, rows) * rowElements * dtypeBytes(from));
    for (let row = 0; row < rows; row += step) {
      const count = Math.min(step, rows - row);
      const part = staging.subarray(0, count * rowElements * dtypeBytes(from));
      const start = first.start + row;
      readSlice(source, ranges.length === 0 ? [] : [{ start, end: start + count }, ...ranges.slice(1)], part);
      const rowBytes = rowElements * dtypeBytes(to);
      convertFloats(part, from, destination.subarray(row * rowBytes, (row + count) * rowBytes), to, source.name);
    }
  }
}

function matrixOf(tensor: Tensor): NonNullable<RowGroups["scales"]> {
  const [, columns = 0] = tensor.shape;
  return { matrix: bytesOf(tensor), rowBytes: columns * dtypeBytes(tensor.dtype) };
}

/** Divides a logical offset or size by a packing factor. Throws CheckpointError `INEXACT_PACKING` unless it is exact. */
export function packExactly(parameter: Parameter, value: number, factor: number): number {
  const packed = value / factor;
  if (!Number.isInteger(packed)) {
    throw new CheckpointError(
      "INEXACT_PACKING",
      `${parameter.name} on rank ${parameter.rank}: expected a multiple of ${factor} but the shard boundary is ${value}`,
      { tensor: parameter.name, expected: `a multiple of ${factor}`, received: value, rank: parameter.rank },
    );
  }
  return packed;
}

/** Guards what a plugin's hook returned as an extent. Throws CheckpointError `INVALID_EXTENT`. */
export function checkExtent(extent: Extent, limit: number, what: string, rank: number): Extent {
  // A hook in plain JavaScript may return anything.
  const { offset = Number.NaN, size = Number.NaN }: Partial<Extent> = extent ?? {};
  if (!Number.isInteger(offset) || !Number.isInteger(size) || offset < 0 || size < 0 || offset + size > limit) {
    throw new CheckpointError(
      "INVALID_EXTENT",
      `${what}: expected an extent inside 0..${limit} but the shard indexer returned offset ${offset}, size ${size}`,
      { tensor: what, expected: `0..${limit}`, received: `${offset}+${size}`, rank },
    );
  }
  return { offset, size };
}

/** The whole of a loaded weight. */
export function wholeOf(shape: readonly number[]): Range[] {
  return shape.map((end) => ({ start: 0, end }));
}

/** `ranges` with the one of dimension `dim` replaced. */
export function narrow(ranges: readonly Range[], dim: number, extent: Extent): Range[] {
  if (dim >= ranges.length) throw new InternalError(`dimension ${dim} of a tensor of ${ranges.length} dimensions`);
  return ranges.map((range, i) => (i === dim ? { start: extent.offset, end: extent.offset + extent.size } : range));
}
