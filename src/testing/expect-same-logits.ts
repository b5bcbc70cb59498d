/** Logits do not depend on the number of ranks, but for the order in which f32 sums are made. */
import { summarize } from "../rank/token-choice.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { Simulation } from "./simulation.js";
import { seededRandom } from "./turn-order.js";

export interface SameLogitsOptions {
  /** Default: 17 ids drawn from the vocabulary with a fixed seed. */
  readonly promptTokenIds?: readonly number[] | undefined;
  /** Tokens decoded after the prompt, one a step. Default 4. */
  readonly decodeSteps?: number | undefined;
}

/** How close the two came. */
export interface SameLogits {
  /** Rows of logits compared. */
  readonly rows: number;
  readonly largestDifference: number;
}

const PROMPT_TOKENS = 17;
const DECODE_STEPS = 4;
const SEED = 20;

/**
 * Runs a prompt, then a few greedy tokens of the reference, through both simulations and checks that every logit at every
 * position differs by at most `tolerance`: 0 for the same bits. Returns the largest difference.
 *
 * Throws SimulationAssertionError naming position, vocabulary id, the rank that computed it, expected, received.
 */
export function expectSameLogits(
  simulation: Simulation,
  reference: Simulation,
  tolerance: number,
  options: SameLogitsOptions = {},
): SameLogits {
  const { promptTokenIds: prompt = drawnPrompt(reference), decodeSteps = DECODE_STEPS } = options;
  let rows = 0;
  let largestDifference = 0;
  const compare = (expected: Float32Array, received: Float32Array): void => {
    const difference = checkRow(simulation, expected, received, tolerance, rows);
    largestDifference = Math.max(largestDifference, difference);
    rows++;
  };
  const expected = reference.logits(prompt);
  const received = simulation.logits(prompt);
  for (const [position, row] of expected.entries()) compare(row, received[position] ?? new Float32Array());
  let last = expected.at(-1);
  for (let step = 0; step < decodeSteps && last !== undefined; step++) {
    const id = summarize(last).maxId;
    last = reference.decode(id);
    compare(last, simulation.decode(id));
  }
  return { rows, largestDifference };
}

/** Returns the largest difference in a row. */
function checkRow(
  simulation: Simulation,
  expected: Float32Array,
  received: Float32Array,
  tolerance: number,
  position: number,
): number {
  let worst = 0;
  for (let id = 0; id < Math.max(expected.length, received.length); id++) {
    const a = expected[id] ?? Number.NaN;
    const b = received[id] ?? Number.NaN;
    const difference = Math.abs(a - b);
    // Written so that a NaN fails, too.
    if (!(difference <= tolerance) && !Object.is(a, b)) {
      const rank = simulation.vocabulary.findIndex(({ start, end }) => id >= start && id < end);
      throw new SimulationAssertionError(
        `logits at position ${position}, rank ${rank}, vocabulary id ${id}: expected ${a} but received ${b}: ` +
          `they differ by ${difference}, more than ${tolerance}`,
        { rank, index: [position, id], expected: a, received: b },
      );
    }
    if (difference > worst) worst = difference;
  }
  return worst;
}

function drawnPrompt({ config, maxModelLength }: Simulation): readonly number[] {
  const random = seededRandom(SEED);
  const length = Math.max(1, Math.min(PROMPT_TOKENS, maxModelLength - DECODE_STEPS));
  return Array.from({ length }, () => Math.floor(random() * config.vocabularySize));
}
