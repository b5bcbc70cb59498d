/**
 * Contestants in turns: a machine that changes its speed changes it for all of them. Every other round goes the other
 * way round, so that none of them always follows the same one.
 */

/** Takes one sample of a contestant. */
export type Measure<C> = (contestant: C) => Promise<number>;

/**
 * `rounds` samples of every contestant, in the order of `contestants`, after one round that warms up and does not count,
 * unless `warmUp` is false. Rejects with what the first failing sample rejects with.
 */
export async function alternate<C>(
  contestants: readonly C[],
  rounds: number,
  measure: Measure<C>,
  warmUp = true,
): Promise<number[][]> {
  const samples = contestants.map((): number[] => []);
  for (let round = warmUp ? 0 : 1; round <= rounds; round++) {
    const order = [...contestants.entries()];
    if (round % 2 === 1) order.reverse();
    for (const [index, contestant] of order) {
      const sample = await measure(contestant);
      if (round > 0) samples[index]?.push(sample);
    }
  }
  return samples;
}
