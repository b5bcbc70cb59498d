/** Which of a rank's rows other ranks hold as well, so that they are read once for all of them. */
import type { Range, Split } from "../parallel/partition.js";
import { rangeSize } from "../parallel/partition.js";

/** Neighbouring rows that the same number of ranks hold. */
export interface HeldRows {
  readonly rows: number;
  /** Ranks, the own one included. */
  readonly holders: number;
}

/** The rows `own` of one rank, one after another, by how many ranks hold them. None where the split is not known. */
export function heldRows(own: Range, split: Split | undefined): readonly HeldRows[] {
  if (split === undefined) return [];
  const bounds = new Set([own.start, own.end]);
  for (const bound of split.flatMap(({ start, end }) => [start, end])) {
    if (own.start < bound && bound < own.end) bounds.add(bound);
  }
  const cuts = [...bounds].sort((a, b) => a - b);
  return cuts.slice(1).map((end, i) => {
    const start = cuts[i] ?? end;
    const holders = split.filter((range) => range.start <= start && end <= range.end).length;
    return { rows: end - start, holders };
  });
}

/** A part of a slice, and where it lies in its bytes: from `start` of them, a fraction, to `end`. */
export interface SlicePiece {
  readonly ranges: readonly Range[];
  readonly start: number;
  readonly end: number;
  readonly holders: number;
}

/**
 * Cuts a slice along dimension `dim`, which holds the rows of `held` in equal amounts of storage. One piece where nobody
 * else holds anything, or where a cut would lie inside an element.
 */
export function cutSlice(ranges: readonly Range[], dim: number, held: readonly HeldRows[]): readonly SlicePiece[] {
  const whole: SlicePiece = { ranges, start: 0, end: 1, holders: 1 };
  const [only] = held;
  if (held.length <= 1) return [{ ...whole, holders: only?.holders ?? 1 }];
  const along = ranges[dim];
  const total = held.reduce((sum, { rows }) => sum + rows, 0);
  if (along === undefined || held.every(({ holders }) => holders === 1)) return [whole];
  const perRow = rangeSize(along) / total;
  const pieces: SlicePiece[] = [];
  let row = 0;
  for (const { rows, holders } of held) {
    const range = { start: along.start + row * perRow, end: along.start + (row + rows) * perRow };
    if (!Number.isInteger(range.start) || !Number.isInteger(range.end)) return [whole];
    const cut = ranges.map((each, i) => (i === dim ? range : each));
    pieces.push({ ranges: cut, start: row / total, end: (row + rows) / total, holders });
    row += rows;
  }
  return pieces;
}
