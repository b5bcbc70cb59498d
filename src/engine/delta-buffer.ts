/**
 * Between the step loop and one consumer: deltas that were not fetched yet are merged into one, so that the loop never
 * waits and the buffer holds no more than the answer itself.
 */
import { InternalError } from "../core/errors.js";
import type { GenerationDelta, GenerationTimings, TokenLogprobs } from "./generation.js";
import type { FinishReason } from "./sequence.js";

/** What only the first delta carries. */
export type FirstDelta = Pick<GenerationDelta, "promptTokenIds" | "seed">;

interface Waiter {
  readonly resolve: (delta: GenerationDelta) => void;
  readonly reject: (error: Error) => void;
}

export class DeltaBuffer {
  #first: FirstDelta | null;
  #text = "";
  #tokenIds: number[] = [];
  readonly #withLogprobs: boolean;
  #logprobs: TokenLogprobs[] = [];
  #finish: { readonly reason: FinishReason; readonly timings: GenerationTimings } | null = null;
  #error: Error | null = null;
  #waiter: Waiter | null = null;

  constructor(first: FirstDelta, withLogprobs: boolean) {
    this.#first = first;
    this.#withLogprobs = withLogprobs;
  }

  /** Adds a token and the text it made certain. */
  add(tokenId: number, text: string, logprobs: TokenLogprobs | null): void {
    this.#tokenIds.push(tokenId);
    this.#text += text;
    if (logprobs !== null) this.#logprobs.push(logprobs);
  }

  /** Ends the answer, with the text that was held back. */
  finish(reason: FinishReason, text: string, timings: GenerationTimings): void {
    this.#text += text;
    this.#finish = { reason, timings };
  }

  /** Ends the answer with an error, which comes after what is buffered. */
  fail(error: Error): void {
    this.#error = error;
    this.deliver();
  }

  /** Hands what was added to the consumer, if it is waiting. */
  deliver(): void {
    const waiter = this.#waiter;
    if (waiter === null) return;
    if (this.#tokenIds.length > 0 || this.#finish !== null) {
      this.#waiter = null;
      waiter.resolve(this.#take());
    } else if (this.#error !== null) {
      this.#waiter = null;
      waiter.reject(this.#error);
    }
  }

  /** The next delta; resolves when there is one. One call at a time. */
  next(): Promise<GenerationDelta> {
    return new Promise((resolve, reject) => {
      if (this.#waiter !== null) throw new InternalError("two consumers wait for one answer");
      this.#waiter = { resolve, reject };
      this.deliver();
    });
  }

  #take(): GenerationDelta {
    const delta: GenerationDelta = {
      text: this.#text,
      tokenIds: this.#tokenIds,
      ...(this.#withLogprobs ? { logprobs: this.#logprobs } : {}),
      finishReason: this.#finish?.reason ?? null,
      ...this.#first,
      ...(this.#finish === null ? {} : { timings: this.#finish.timings }),
    };
    this.#first = null;
    this.#text = "";
    this.#tokenIds = [];
    this.#logprobs = [];
    return delta;
  }
}
