/** A request that generates: turns sampled tokens into deltas and decides when the answer ends. */
import { invariant } from "../core/errors.js";
import type { StepViews } from "../rank/step.js";
import type { AnswerText } from "./answer-text.js";
import { DeltaBuffer } from "./delta-buffer.js";
import type { GenerationDelta, GenerationTimings, TokenLogprob, TokenLogprobs } from "./generation.js";
import type { SamplingParams } from "./sampling.js";
import type { FinishReason, Sequence } from "./sequence.js";
import { checkFinite, type Task } from "./task.js";

export interface GenerationTaskOptions {
  readonly sequence: Sequence;
  readonly sampling: SamplingParams;
  readonly promptTokenIds: readonly number[];
  readonly text: AnswerText;
  /** Columns of the result arrays that hold alternatives. */
  readonly logprobColumns: number;
  /** When the request came, by `now`. */
  readonly startedAt: number;
  /** A clock, in milliseconds. */
  readonly now: () => number;
}

export class GenerationTask implements Task {
  readonly sequence: Sequence;
  readonly #options: GenerationTaskOptions;
  readonly #deltas: DeltaBuffer;
  #firstTokenAt: number | null = null;
  #lastTokenAt = 0;

  constructor(options: GenerationTaskOptions) {
    const { sequence, sampling, promptTokenIds } = options;
    this.sequence = sequence;
    this.#options = options;
    const drawn = sampling.temperature > 0;
    const first = { promptTokenIds, ...(drawn ? { seed: sampling.seed } : {}) };
    this.#deltas = new DeltaBuffer(first, sampling.logprobs >= 0);
  }

  /** The next delta; rejects when the request has failed. */
  next(): Promise<GenerationDelta> {
    return this.#deltas.next();
  }

  accept(results: StepViews, output: number): FinishReason | null {
    const { sequence } = this;
    const { sampling, text, now } = this.#options;
    const id = results.resultIds[output] ?? -1;
    const logprobs = this.#logprobsOf(results, output, id);
    sequence.append(id);
    this.#lastTokenAt = now();
    this.#firstTokenAt ??= this.#lastTokenAt;
    const ended = sampling.endTokenIds.has(id);
    this.#deltas.add(id, ended && !sampling.includeStopString ? "" : text.push(id), logprobs);
    let reason: FinishReason | null = null;
    if (ended || text.stopped || sequence.outputLength >= sampling.maxTokens) {
      const rest = text.end();
      // Also the rest can complete a stop text.
      reason = ended || text.stopped ? "stop" : "length";
      this.#deltas.finish(reason, rest, this.#timings());
    }
    this.#deltas.deliver();
    return reason;
  }

  abort(): void {
    this.#deltas.finish("abort", this.#options.text.end(), this.#timings());
    this.#deltas.deliver();
  }

  fail(error: Error): void {
    this.#deltas.fail(error);
  }

  #logprobsOf(results: StepViews, output: number, id: number): TokenLogprobs | null {
    const { sampling, logprobColumns } = this.#options;
    if (sampling.logprobs < 0) {
      checkFinite(id, 0, this.sequence.length);
      return null;
    }
    const logprob = results.resultLogprobs[output] ?? Number.NaN;
    checkFinite(id, logprob, this.sequence.length);
    invariant(sampling.logprobs <= logprobColumns, "more log-probabilities were asked for than a step can hold");
    const top: TokenLogprob[] = [];
    for (let i = 0; i < sampling.logprobs; i++) {
      const at = output * logprobColumns + i;
      top.push({ id: results.topIds[at] ?? -1, logprob: results.topLogprobs[at] ?? Number.NaN });
    }
    return { id, logprob, top };
  }

  #timings(): GenerationTimings {
    const { startedAt, now } = this.#options;
    const first = this.#firstTokenAt;
    const intervals = this.sequence.outputLength - 1;
    return {
      ttftMs: first === null ? null : first - startedAt,
      tpotMs: first === null || intervals < 1 ? null : (this.#lastTokenAt - first) / intervals,
      totalMs: now() - startedAt,
    };
  }
}
