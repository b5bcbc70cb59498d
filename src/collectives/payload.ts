/**
 * What collectives do to the elements of their operands, in TypeScript. All sums of all drivers come from here or repeat
 * it (native/collectives.cc): ranks in order, each sum rounded to f32, a NaN always the same NaN.
 */
import { describeValue, InternalError, OptionError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";

/**
 * What all-reduces carry from rank to rank: the f32 that ranks sum, or these rounded to bf16, half as many bytes. Sums are
 * f32 either way.
 */
export const COLLECTIVE_PAYLOADS = ["f32", "bf16"] as const;
export type CollectivePayload = (typeof COLLECTIVE_PAYLOADS)[number];

/** Checks what a user asks for. Throws OptionError `INVALID_OPTION`. */
export function checkCollectivePayload(value: unknown): CollectivePayload {
  const found = COLLECTIVE_PAYLOADS.find((payload) => payload === value);
  if (found !== undefined) return found;
  const expected = COLLECTIVE_PAYLOADS.join(" or ");
  throw new OptionError(
    "INVALID_OPTION",
    `expected collectivePayload to be ${expected} but received ${describeValue(value)}`,
    { option: "collectivePayload", expected, received: String(value) },
  );
}

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

/** Rounds f32, given as bits, to bf16: to nearest, ties to even; NaN stays NaN. */
export function roundElements(
  out: Uint16Array,
  outFirst: number,
  source: Int32Array,
  sourceFirst: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) out[outFirst + i] = bf16Bits(source[sourceFirst + i] ?? 0);
}

/** The same in place: what another rank would read. */
export function roundInPlace(data: Int32Array, count: number): void {
  for (let i = 0; i < count; i++) data[i] = bf16Bits(data[i] ?? 0) << 16;
}

function bf16Bits(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** The f32 bits of bf16 elements. */
export function widenElements(
  out: Int32Array,
  outFirst: number,
  source: Uint16Array,
  sourceFirst: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) out[outFirst + i] = (source[sourceFirst + i] ?? 0) << 16;
}

/** `out[i] += source[i]` of bf16 elements, as addElements does. */
export function addWidened(
  out: Float32Array,
  outFirst: number,
  source: Uint16Array,
  sourceFirst: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) {
    wide.bits[0] = (source[sourceFirst + i] ?? 0) << 16;
    out[outFirst + i] = (out[outFirst + i] ?? 0) + (wide.f32[0] ?? 0);
  }
}

const wideBuffer = new ArrayBuffer(4);
const wide = { bits: new Int32Array(wideBuffer), f32: new Float32Array(wideBuffer) };

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
