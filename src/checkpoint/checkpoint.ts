/**
 * What every model loader yields: named tensors whose bytes are still on disk. Nothing here knows which file format
 * they come from, nor who will own which part of them.
 */
import type { DType } from "../core/dtype.js";
import type { OpenFile } from "./open-file.js";
import type { RowGroups } from "./row-groups.js";

/** A tensor of a checkpoint: described now, read later, and only where a rank asks. */
export interface CheckpointTensor {
  readonly name: string;
  readonly dtype: DType;
  /** Row-major; `[]` for a scalar. */
  readonly shape: readonly number[];
  /** File that holds it, for messages. */
  readonly file: string;
  /**
   * Copies bytes `[byteOffset, byteOffset + destination.length)` of the row-major tensor into `destination`. Throws
   * CheckpointError `SHORT_READ` when the file ends early, or RangeError outside the tensor.
   */
  read(destination: Uint8Array, byteOffset: number): void;
  /**
   * Fills `destination` with a slice, dense and row-major: for tensors that know better how to read one than run by run.
   * Called with checked ranges, one a dimension, and a destination of exactly their size.
   */
  readSlice?(ranges: readonly { readonly start: number; readonly end: number }[], destination: Uint8Array): void;
  /**
   * Reads a slice of whole rows to row `firstRow` of a matrix in groups and the rows after it: for matrices of codes that are
   * taken apart while they are read. False, with nothing read, for a slice that it cannot read like that. Called with checked
   * ranges, whose rows have `groups.rowBytes`.
   */
  readRowGroups?(
    ranges: readonly { readonly start: number; readonly end: number }[],
    groups: RowGroups,
    firstRow: number,
  ): boolean;
}

/** An open checkpoint. */
export interface Checkpoint {
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** Bytes read from disk for tensor data so far by this instance. */
  readonly bytesRead: number;
  /** What it took to verify checksums when it was opened; absent where there are none. */
  readonly verification?: { readonly bytes: number; readonly ms: number };
  /** The files that it reads, which must stay as they are; absent where there are none. */
  readonly openFiles?: readonly OpenFile[];
  close(): void;
}
