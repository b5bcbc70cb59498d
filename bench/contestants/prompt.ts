import { seededRandom } from "../models/weight-types.js";

/** Ids at both ends of a vocabulary that prompts leave out: bytes, and special tokens. */
const MARGIN = 256;

/** Token ids of a prompt, the same for every contestant. */
export function promptOf(tokens: number, vocabulary: number, seed: number): number[] {
  const random = seededRandom(seed);
  const ordinary = vocabulary - 2 * MARGIN;
  return Array.from({ length: tokens }, () => MARGIN + Math.floor(random() * ordinary));
}
