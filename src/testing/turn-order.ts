/** In which order ranks take their turns. It never changes a bit of any result; tests shuffle it to show that. */
import { OptionError } from "../core/errors.js";

/**
 * "byRank", "reversed", "shuffled" (by the simulation's seed, anew in every round), or a function that returns every rank
 * once for a round: one turn of each rank between two collectives, counted from 0.
 */
export type TurnOrder = "byRank" | "reversed" | "shuffled" | ((round: number, worldSize: number) => readonly number[]);

/** The order of each next round. Throws OptionError `INVALID_OPTION` for an order it does not know. */
export function turnOrder(order: TurnOrder, worldSize: number, seed: number): () => readonly number[] {
  const byRank = Array.from({ length: worldSize }, (_, rank) => rank);
  if (typeof order === "function") {
    let round = 0;
    return () => order(round++, worldSize);
  }
  switch (order) {
    case "byRank":
      return () => byRank;
    case "reversed": {
      const reversed = byRank.toReversed();
      return () => reversed;
    }
    case "shuffled": {
      const random = seededRandom(seed);
      return () => shuffle(byRank, random);
    }
    default:
      throw new OptionError(
        "INVALID_OPTION",
        `expected order to be byRank, reversed, shuffled or a function but received ${JSON.stringify(order)}`,
        { option: "order", expected: "byRank|reversed|shuffled|function", received: String(order) },
      );
  }
}

/** Numbers in [0, 1) that depend on the seed alone (Mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Fisher and Yates's shuffle of a copy. */
function shuffle(values: readonly number[], random: () => number): readonly number[] {
  const shuffled = [...values];
  for (let i = shuffled.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const other = shuffled[j] ?? 0;
    shuffled[j] = shuffled[i] ?? 0;
    shuffled[i] = other;
  }
  return shuffled;
}
