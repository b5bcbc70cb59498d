/**
 * How many steps the engine has in flight. Two keep the ranks busy: they run one while the engine takes the results of the
 * one before. Waking for every step costs the engine's thread some 100 us, on a core that a rank may need; where steps are
 * short, that is much of them. So while sequences only decode, more steps are in flight, and the engine takes the results of
 * all but the last at once.
 */
import type { StepPlan } from "./scheduler.js";

/** Results are taken so often at least, in milliseconds, as far as steps are shorter. */
const AHEAD_MS = 10;
/** Weight of the last duration in the mean. */
const NEWEST = 0.25;

export class StepsAhead {
  readonly #most: number;
  readonly #now: () => number;
  /** Steps in flight, and those of them that do not only decode: their results are not kept waiting. */
  #inFlight = 0;
  #others = 0;
  /** Milliseconds of a step that decodes; NaN while unknown. */
  #stepMs = Number.NaN;
  /** When results were taken last; NaN when no step was in flight then. */
  #takenAt = Number.NaN;

  /** At most `most` steps; `now` is a clock in milliseconds. */
  constructor(most: number, now: () => number) {
    this.#most = most;
    this.#now = now;
  }

  /** Whether one step more may be begun. */
  get room(): boolean {
    const fitting = this.#others > 0 || Number.isNaN(this.#stepMs) ? 0 : 1 + Math.floor(AHEAD_MS / this.#stepMs);
    return this.#inFlight < Math.min(this.#most, Math.max(2, fitting));
  }

  /** Steps whose results are taken next: all but the last, for ranks have that one to go on with. */
  get awaited(): number {
    return Math.max(Math.min(1, this.#inFlight), this.#inFlight - 1);
  }

  begun(plan: StepPlan): void {
    this.#inFlight++;
    if (!isDecoding(plan)) this.#others++;
  }

  /** The results of these steps, the oldest in flight, have just been taken. */
  taken(steps: readonly { readonly plan: StepPlan }[]): void {
    const now = this.#now();
    const ms = (now - this.#takenAt) / steps.length;
    if (this.#others === 0 && !Number.isNaN(ms)) {
      this.#stepMs = Number.isNaN(this.#stepMs) ? ms : this.#stepMs + NEWEST * (ms - this.#stepMs);
    }
    this.#inFlight -= steps.length;
    for (const { plan } of steps) {
      if (!isDecoding(plan)) this.#others--;
    }
    this.#takenAt = this.#inFlight > 0 ? now : Number.NaN;
  }
}

/** Whether a step computes one token for each of its sequences and nothing else. */
function isDecoding({ tokens, outputs, sequences }: StepPlan): boolean {
  return tokens === sequences.length && outputs === tokens;
}
