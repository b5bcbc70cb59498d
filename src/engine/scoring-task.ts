/** A request that scores a text: collects the log-probability of every token but the first. */
import { RequestError } from "../core/errors.js";
import type { StepViews } from "../rank/step.js";
import type { ScoreResult } from "./generation.js";
import type { FinishReason, Sequence } from "./sequence.js";
import { checkFinite, type Task } from "./task.js";

/** Where the result goes: the two ends of a promise. */
export interface ScoreReceiver {
  readonly resolve: (result: ScoreResult) => void;
  readonly reject: (error: Error) => void;
}

export class ScoringTask implements Task {
  readonly sequence: Sequence;
  readonly #nll: Float64Array;
  readonly #receiver: ScoreReceiver;

  constructor(sequence: Sequence, receiver: ScoreReceiver) {
    this.sequence = sequence;
    this.#nll = new Float64Array(sequence.goal);
    this.#receiver = receiver;
  }

  accept(results: StepViews, firstOutput: number, outputs: number): FinishReason | null {
    const { sequence } = this;
    for (let i = 0; i < outputs; i++) {
      const logprob = results.resultLogprobs[firstOutput + i] ?? Number.NaN;
      checkFinite(results.resultIds[firstOutput + i] ?? -1, logprob, sequence.scored + i);
      this.#nll[sequence.scored + i] = -logprob;
    }
    sequence.addScores(outputs);
    if (sequence.scored < this.#nll.length) return null;
    this.#receiver.resolve({ tokens: sequence.length, nllMean: mean(this.#nll), nll: this.#nll });
    return "length";
  }

  abort(): void {
    this.#receiver.reject(new RequestError("REQUEST_ABORTED", "the request was aborted before it was finished"));
  }

  fail(error: Error): void {
    this.#receiver.reject(error);
  }
}

function mean(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}
