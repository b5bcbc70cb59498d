/**
 * Who owns what: the partition of heads, rows, columns and vocabulary ids over the ranks of a tensor-parallel group.
 * Pure arithmetic over plain values; even and uneven partitions are the same thing here. Nothing in this file knows a
 * layer, a storage format or a thread.
 */
import { PartitionError } from "../core/errors.js";

/** Half-open interval `[start, end)`. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** One range a rank, in rank order: disjoint and without gaps, unless a plan says that ranks replicate. */
export type Split = readonly Range[];

export const rangeSize = (range: Range): number => range.end - range.start;

export const cdiv = (a: number, b: number): number => Math.floor((a + b - 1) / b);

/** The range of one rank. */
export function rangeOf(split: Split, rank: number): Range {
  const range = split[rank];
  if (range === undefined) {
    throw new RangeError(`expected a rank below ${split.length} but received ${rank}`);
  }
  return range;
}

/** `total` equal parts; throws PartitionError `UNEVEN_SPLIT` naming `what` when it does not divide. */
export function splitEvenly(total: number, worldSize: number, what: string): Split {
  if (total % worldSize !== 0) {
    throw new PartitionError(
      "UNEVEN_SPLIT",
      `${what}: expected a multiple of ${worldSize} ranks but received ${total}`,
      {
        expected: `a multiple of ${worldSize}`,
        received: total,
        worldSize,
      },
    );
  }
  return splitUnits(total, total / worldSize, worldSize, what);
}

/**
 * Splits `total` on multiples of `unit`, as evenly as that allows; the first ranks get what is left over, and the last
 * non-empty range ends at `total` even if that is inside a unit. Throws PartitionError `TOO_MANY_RANKS` when there are
 * fewer units than ranks.
 */
export function splitUnits(total: number, unit: number, worldSize: number, what: string): Split {
  const units = cdiv(total, unit);
  if (units < worldSize) {
    const detail = unit === 1 ? `${total}` : `${units} (${total} in units of ${unit})`;
    throw new PartitionError(
      "TOO_MANY_RANKS",
      `${what}: expected at least ${worldSize} to split over ${worldSize} ranks but received ${detail}`,
      { expected: worldSize, received: units, worldSize },
    );
  }
  const base = Math.floor(units / worldSize);
  const extra = units % worldSize;
  return Array.from({ length: worldSize }, (_, rank) => {
    const first = rank * base + Math.min(rank, extra);
    const count = base + (rank < extra ? 1 : 0);
    return { start: Math.min(first * unit, total), end: Math.min((first + count) * unit, total) };
  });
}

/** Alignment of splits that are free to choose: a whole number of cache lines, vectors and quantization blocks. */
export const PREFERRED_UNIT = 64;

/** The largest power of two up to PREFERRED_UNIT in which `total` has at least one unit a rank; 1 if none has. */
export function preferredUnit(total: number, worldSize: number): number {
  let unit = PREFERRED_UNIT;
  while (unit > 1 && cdiv(total, unit) < worldSize) unit /= 2;
  return unit;
}

/** Splits a size that may be cut anywhere (an intermediate size): on multiples of 64 where it can, of less where not. */
export function splitSize(total: number, worldSize: number, what: string): Split {
  return splitUnits(total, preferredUnit(total, worldSize), worldSize, what);
}

/** Attention heads of one rank. */
export interface HeadRange {
  readonly queryHeads: Range;
  /** KV heads that those query heads read; ranks may share some. */
  readonly kvHeads: Range;
  /** For each query head of the rank, the index inside `kvHeads` of the KV head it reads. */
  readonly kvHeadOf: readonly number[];
}

/**
 * Splits attention heads. Up to as many ranks as KV heads, whole KV groups are dealt out; with more ranks, query heads
 * are dealt out and the KV heads they need are replicated: query heads `[h0, h1)` need KV heads
 * `[h0 * kv // heads, cdiv(h1 * kv, heads))`.
 *
 * Throws PartitionError `INVALID_HEADS` unless `kvHeads` divides `heads`, `TOO_MANY_RANKS` beyond one query head a rank.
 */
export function splitHeads(heads: number, kvHeads: number, worldSize: number): readonly HeadRange[] {
  if (heads % kvHeads !== 0) {
    throw new PartitionError(
      "INVALID_HEADS",
      `attention heads: expected a multiple of ${kvHeads} KV heads but received ${heads}`,
      { expected: `a multiple of ${kvHeads}`, received: heads },
    );
  }
  const group = heads / kvHeads;
  const unit = worldSize <= kvHeads ? group : 1;
  return splitUnits(heads, unit, worldSize, "attention heads").map((queryHeads) => {
    const kv = {
      start: Math.floor((queryHeads.start * kvHeads) / heads),
      end: cdiv(queryHeads.end * kvHeads, heads),
    };
    const kvHeadOf = Array.from(
      { length: rangeSize(queryHeads) },
      (_, i) => Math.floor((queryHeads.start + i) / group) - kv.start,
    );
    return { queryHeads, kvHeads: kv, kvHeadOf };
  });
}

/**
 * Splits a vocabulary where vLLM does, on multiples of 64 (of less where there are too many ranks for that). Ranges need
 * not be of equal size here, so no rank stores padding: the last one is just shorter.
 */
export function splitVocabulary(size: number, worldSize: number): Split {
  return splitUnits(size, preferredUnit(size, worldSize), worldSize, "vocabulary");
}

/** Makes several splits and keeps every reason why some cannot be made: who changes the number of ranks wants them all. */
export class SplitAttempts {
  readonly #errors: PartitionError[] = [];

  /** What `split` makes; undefined where it throws PartitionError. */
  attempt<Made>(split: () => Made): Made | undefined {
    try {
      return split();
    } catch (error) {
      if (!(error instanceof PartitionError)) throw error;
      this.#errors.push(error);
      return undefined;
    }
  }

  /** All that failed as one error, with the code and the details of the first. */
  error(): PartitionError {
    const [first] = this.#errors;
    if (first === undefined) throw new RangeError("no split has failed");
    if (this.#errors.length === 1) return first;
    return new PartitionError(first.code, this.#errors.map(({ message }) => message).join("; "), first.details);
  }
}

/** Every range of a split multiplied by `factor`: heads into rows. */
export function scaleSplit(split: Split, factor: number): Split {
  return split.map(({ start, end }) => ({ start: start * factor, end: end * factor }));
}

/** Which of its heads a rank's range is of. */
export type HeadKind = "queryHeads" | "kvHeads";

/** What has been worked out of a list of heads: the many layers of a model share one list, and then one of rows too. */
const knownHeadRows = new WeakMap<readonly HeadRange[], Map<string, Split>>();

/** Rows of every rank's heads in a matrix that has `size` rows a head. The same object for the same list of heads. */
export function headRows(heads: readonly HeadRange[], of: HeadKind, size: number): Split {
  const known = knownHeadRows.get(heads) ?? new Map<string, Split>();
  knownHeadRows.set(heads, known);
  const key = `${of} ${size}`;
  let rows = known.get(key);
  if (rows === undefined) {
    const ranges = heads.map((each) => each[of]);
    rows = scaleSplit(ranges, size);
    known.set(key, rows);
  }
  return rows;
}
