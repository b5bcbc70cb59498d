/** Numbers out of samples. */

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** Middle value; the mean of the two in the middle of an even number. NaN of nothing. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? Number.NaN;
  return (lower + upper) / 2;
}

/** NaN throughout for no samples. */
export function summarize(values: readonly number[]): Summary {
  if (values.length === 0) return { median: Number.NaN, min: Number.NaN, max: Number.NaN };
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/**
 * How much faster `ours` was than `peer`, round by round: a machine that was slow in a round was slow for both. Rates
 * (more is better) divide as they are, times the other way round. Rounds that only one of them has are left out.
 */
export function pairRatios(ours: readonly number[], peer: readonly number[], better: "higher" | "lower"): number[] {
  const rounds = Math.min(ours.length, peer.length);
  return Array.from({ length: rounds }, (_, round) => {
    const [mine, theirs] = [ours[round] ?? Number.NaN, peer[round] ?? Number.NaN];
    return better === "higher" ? mine / theirs : theirs / mine;
  });
}
