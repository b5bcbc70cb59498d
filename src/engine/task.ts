/** What the step loop asks of a request in flight. */
import { RankError } from "../core/errors.js";
import type { StepViews } from "../rank/step.js";
import type { FinishReason, Sequence } from "./sequence.js";

export interface Task {
  readonly sequence: Sequence;
  /**
   * Takes the results of the sequence's outputs in a step that has run, `outputs` of them from `firstOutput` on. Returns why
   * the sequence is done, or null if it goes on. A throw fails this request alone.
   */
  accept(results: StepViews, firstOutput: number, outputs: number): FinishReason | null;
  /** The caller gave the request up. */
  abort(): void;
  fail(error: Error): void;
}

/** Throws RankError `NON_FINITE_LOGITS` when rank 0 found no finite logits, or a log-probability is not a number. */
export function checkFinite(id: number, logprob: number, position: number): void {
  if (id >= 0 && Number.isFinite(logprob)) return;
  throw new RankError(
    "NON_FINITE_LOGITS",
    `expected finite logits at position ${position} of the sequence but received NaN or infinity: ` +
      "the weights, or the numbers the model computes with them, are out of range",
    { position, rank: 0 },
  );
}
