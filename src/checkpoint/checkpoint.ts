/**
 * What every model loader yields: named tensors whose bytes are still on disk. Nothing here knows which file format
 * they come from, nor who will own which part of them.
 */
import type { DType } from "../core/dtype.js";

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
}

/** An open checkpoint. */
export interface Checkpoint {
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** Bytes read from disk for tensor data so far by this instance. */
  readonly bytesRead: number;
  close(): void;
}
