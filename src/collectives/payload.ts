/**
 * What collectives do to the elements of their operands, in TypeScript. All sums of all drivers come from here or repeat
 * it (native/collectives.cc): ranks in order, each sum rounded to f32, a NaN always the same NaN.
 */
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";

/** The one NaN that sums give: hardware and engines differ in the payload they would pass on. */
const QUIET_NAN_BITS = 0x7fc00000;

/** The elements of an operand, as numbers and as bits. Copies go by bits: a NaN read as a number may change. */
export interface PayloadView {
  readonly f32: Float32Array;
  readonly bits: Int32Array;
}

const views = new WeakMap<Operand, PayloadView>();

/** The elements of an f32 or i32 operand; made once for an operand, so that a step allocates nothing. */
export function payloadOf(operand: Operand): PayloadView {
  let view = views.get(operand);
  if (view === undefined) {
    const { arena, byteOffset, dtype, name } = operand.tensor;
    if (dtype !== "f32" && dtype !== "i32") {
      throw new InternalError(`expected ${name} to be f32 or i32 but it is ${dtype}`);
    }
    const count = operand.rows * operand.columns;
    view = {
      f32: new Float32Array(arena.buffer, byteOffset, count),
      bits: new Int32Array(arena.buffer, byteOffset, count),
    };
    views.set(operand, view);
  }
  return view;
}

export function copyElements(
  out: Int32Array,
  outFirst: number,
  source: Int32Array,
  sourceFirst: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) out[outFirst + i] = source[sourceFirst + i] ?? 0;
}

/** `out[i] += source[i]`. The sum of two f32 in f64, rounded to f32 by the store, is the correctly rounded f32 sum. */
export function addElements(
  out: Float32Array,
  outFirst: number,
  source: Float32Array,
  sourceFirst: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) out[outFirst + i] = (out[outFirst + i] ?? 0) + (source[sourceFirst + i] ?? 0);
}

/** Replaces every NaN by the quiet NaN 0x7fc00000. */
export function unifyNaNs(out: PayloadView, first: number, count: number): void {
  for (let i = first; i < first + count; i++) {
    if (Number.isNaN(out.f32[i])) out.bits[i] = QUIET_NAN_BITS;
  }
}

/**
 * Packs elements `[first, first + count)` of the leading `width` columns of a matrix, counted row by row, into the front
 * of `out`.
 */
export function packColumns(
  out: Int32Array,
  source: Int32Array,
  columns: number,
  width: number,
  first: number,
  count: number,
): void {
  for (let done = 0; done < count; ) {
    const row = Math.floor((first + done) / width);
    const column = (first + done) % width;
    const run = Math.min(width - column, count - done);
    copyElements(out, done, source, row * columns + column, run);
    done += run;
  }
}

/** The inverse of packColumns: the rows begin at column `offset` of `out`. */
export function unpackColumns(
  out: Int32Array,
  columns: number,
  offset: number,
  source: Int32Array,
  width: number,
  first: number,
  count: number,
): void {
  for (let done = 0; done < count; ) {
    const row = Math.floor((first + done) / width);
    const column = (first + done) % width;
    const run = Math.min(width - column, count - done);
    copyElements(out, row * columns + offset + column, source, done, run);
    done += run;
  }
}

/** Row by row, the leading `width` columns of `source` to column `offset` of `out`. */
export function copyColumns(
  out: Int32Array,
  outColumns: number,
  offset: number,
  source: Int32Array,
  sourceColumns: number,
  width: number,
  rows: number,
): void {
  for (let m = 0; m < rows; m++) copyElements(out, m * outColumns + offset, source, m * sourceColumns, width);
}
