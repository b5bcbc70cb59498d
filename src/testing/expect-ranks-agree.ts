/** All ranks hold the same bits after every collective. */
import { SimulationAssertionError } from "./assertion-error.js";
import type { Simulation } from "./simulation.js";

const PROMPT_TOKENS = 5;
const GENERATED_TOKENS = 3;

/**
 * Checks that in every step so far all ranks held the same bits after every collective: its result, and the activations
 * that every rank computes for itself (residual stream, norms). The comparing was done while the ranks ran. A simulation
 * of several ranks that has run nothing yet is run on a short prompt first. Returns the collectives that were compared.
 *
 * Throws SimulationAssertionError for the first difference, naming rank, layer, collective, index, expected (on rank 0),
 * received.
 */
export function expectRanksAgree(simulation: Simulation): number {
  if (simulation.comparedCollectives === 0) {
    const { vocabularySize } = simulation.config;
    const prompt = Array.from({ length: PROMPT_TOKENS }, (_, i) => (i * 7 + 1) % vocabularySize);
    simulation.generate(prompt, GENERATED_TOKENS);
  }
  const [first] = simulation.disagreements;
  if (first === undefined) return simulation.comparedCollectives;
  const { step, sequence, site, what, rank, index, expected, received } = first;
  throw new SimulationAssertionError(
    `${what} at ${site}, step ${step}, collective ${sequence}, rank ${rank}, index [${index.join(", ")}]: ` +
      `expected ${expected}, as on rank 0, but received ${received}`,
    { layer: site, rank, index, expected, received },
  );
}
