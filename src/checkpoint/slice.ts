/** Slices of row-major tensors as runs of contiguous bytes: what a rank reads, and nothing beside it. */
import { dtypeBytes } from "../core/dtype.js";
import { CheckpointError } from "../core/errors.js";
import type { CheckpointTensor } from "./checkpoint.js";

/** Indices `[start, end)` of one dimension. */
export interface SliceRange {
  readonly start: number;
  readonly end: number;
}

/** One contiguous run: where it lies in the tensor, its length, and where it lies in the dense slice. */
export type RunCallback = (sourceByteOffset: number, sizeBytes: number, destinationByteOffset: number) => void;

/** The whole of a tensor, as ranges. */
export function fullRanges(shape: readonly number[]): SliceRange[] {
  return shape.map((extent) => ({ start: 0, end: extent }));
}

/** The extents of a slice. */
export function sliceShape(ranges: readonly SliceRange[]): number[] {
  return ranges.map(({ start, end }) => end - start);
}

/** Elements of a slice. */
export function sliceElements(ranges: readonly SliceRange[]): number {
  return ranges.reduce((product, { start, end }) => product * (end - start), 1);
}

/**
 * Calls `callback` for each contiguous run of the slice `ranges` of a row-major tensor of `shape`, in the order of its
 * bytes; as few runs as there can be: rows that follow each other without a gap are one. The slice is dense at the
 * destination. A scalar (`[]`) is one run, an empty slice none.
 *
 * Throws CheckpointError `SLICE_OUT_OF_BOUNDS`, naming `tensor`, unless there is one range for each dimension, ordered
 * and within it.
 */
export function forEachRun(
  shape: readonly number[],
  elementBytes: number,
  ranges: readonly SliceRange[],
  callback: RunCallback,
  tensor = "tensor",
): void {
  checkRanges(shape, ranges, tensor);
  if (sliceElements(ranges) === 0) return;
  const { outer, runOffset, runBytes } = splitIntoRuns(shape, elementBytes, ranges);
  const counters = outer.map(() => 0);
  let source = runOffset;
  let destination = 0;
  for (;;) {
    callback(source, runBytes, destination);
    destination += runBytes;
    // Advance the innermost dimension that is not at its end, and rewind those inside it.
    let dimension = outer.length - 1;
    for (; dimension >= 0; dimension--) {
      const { count, stride } = outer[dimension] ?? { count: 1, stride: 0 };
      const counter = (counters[dimension] ?? 0) + 1;
      if (counter < count) {
        counters[dimension] = counter;
        source += stride;
        break;
      }
      counters[dimension] = 0;
      source -= (count - 1) * stride;
    }
    if (dimension < 0) return;
  }
}

/**
 * Reads the slice `ranges` of `tensor`, dense and row-major, into `destination`: only its bytes, one read for each run,
 * nothing staged.
 *
 * Throws CheckpointError `SLICE_OUT_OF_BOUNDS` as `forEachRun` does, `SLICE_SIZE_MISMATCH` unless `destination` is exactly
 * as long as the slice, and what `tensor.read` throws.
 */
export function readSlice(tensor: CheckpointTensor, ranges: readonly SliceRange[], destination: Uint8Array): void {
  checkSlice(tensor, ranges, destination.length);
  if (tensor.readSlice !== undefined) {
    tensor.readSlice(ranges, destination);
    return;
  }
  readByRuns(tensor, ranges, destination);
}

/** Throws what `readSlice` throws for a slice that the tensor does not have, or that takes other than `received` bytes. */
export function checkSlice(
  { name, file, shape, dtype }: CheckpointTensor,
  ranges: readonly SliceRange[],
  received: number,
): void {
  checkRanges(shape, ranges, name);
  const expected = sliceElements(ranges) * dtypeBytes(dtype);
  if (received === expected) return;
  throw new CheckpointError(
    "SLICE_SIZE_MISMATCH",
    `${name}: expected ${expected} bytes of space for the slice ${describe(ranges)} but received ${received}`,
    { tensor: name, file, expected, received },
  );
}

/** The same as `readSlice`, run by run, with checked ranges and a destination of their size. */
export function readByRuns(tensor: CheckpointTensor, ranges: readonly SliceRange[], destination: Uint8Array): void {
  const read: RunCallback = (source, sizeBytes, offset) =>
    tensor.read(destination.subarray(offset, offset + sizeBytes), source);
  forEachRun(tensor.shape, dtypeBytes(tensor.dtype), ranges, read, tensor.name);
}

/** The runs of a slice as equal distances: first byte, length, distance and number of runs; null where distances differ. */
export function stridedRuns(
  shape: readonly number[],
  elementBytes: number,
  ranges: readonly SliceRange[],
): { readonly offset: number; readonly runBytes: number; readonly stride: number; readonly runs: number } | null {
  const { outer, runOffset, runBytes } = splitIntoRuns(shape, elementBytes, ranges);
  const [walked, ...others] = outer.filter(({ count }) => count > 1);
  if (others.length > 0) return null;
  return { offset: runOffset, runBytes, stride: walked?.stride ?? 0, runs: walked?.count ?? 1 };
}

interface Runs {
  /** Dimensions that are walked, from the outside in. */
  readonly outer: readonly { readonly count: number; readonly stride: number }[];
  /** Byte offset of the first run. */
  readonly runOffset: number;
  readonly runBytes: number;
}

/**
 * A run covers the last dimension that is not taken whole and all dimensions inside it; those outside are walked. No two
 * runs touch: the walked step is longer than a run.
 */
function splitIntoRuns(shape: readonly number[], elementBytes: number, ranges: readonly SliceRange[]): Runs {
  const outer: { count: number; stride: number }[] = [];
  let stride = elementBytes;
  let runOffset = 0;
  let runBytes = elementBytes;
  let whole = true;
  for (let dimension = shape.length - 1; dimension >= 0; dimension--) {
    const extent = shape[dimension] ?? 0;
    const { start, end } = ranges[dimension] ?? { start: 0, end: 0 };
    runOffset += start * stride;
    if (whole) runBytes *= end - start;
    else outer.unshift({ count: end - start, stride });
    whole &&= end - start === extent;
    stride *= extent;
  }
  return { outer, runOffset, runBytes };
}

function checkRanges(shape: readonly number[], ranges: readonly SliceRange[], tensor: string): void {
  const fits =
    ranges.length === shape.length &&
    ranges.every(({ start, end }, dimension) => {
      const whole = Number.isSafeInteger(start) && Number.isSafeInteger(end);
      return whole && start >= 0 && start <= end && end <= (shape[dimension] ?? 0);
    });
  if (fits) return;
  const expected = `a slice within shape [${shape.join(", ")}]`;
  const received = describe(ranges);
  throw new CheckpointError("SLICE_OUT_OF_BOUNDS", `${tensor}: expected ${expected} but received ${received}`, {
    tensor,
    expected,
    received,
  });
}

function describe(ranges: readonly SliceRange[]): string {
  return `[${ranges.map(({ start, end }) => `${start}..${end}`).join(", ")})`;
}
