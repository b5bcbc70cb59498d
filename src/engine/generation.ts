/** What a caller asks for and receives. */
import type { ChatMessage } from "./chat-template.js";
import type { SamplingOptions } from "./sampling.js";
import type { FinishReason } from "./sequence.js";

/** A request to continue a text. Exactly one of `prompt`, `promptTokenIds` and `messages` is given. */
export interface GenerationRequest {
  /** Text to continue; special tokens in it are recognized, and those a tokenizer puts around a text are added. */
  readonly prompt?: string | undefined;
  /** The same, as token ids, taken as they are. */
  readonly promptTokenIds?: readonly number[] | undefined;
  /** A conversation whose next turn the assistant takes, written by the model's chat template. */
  readonly messages?: readonly ChatMessage[] | undefined;
  readonly sampling?: SamplingOptions | undefined;
}

export interface RequestOptions {
  /** Gives the request up when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/** A token and the natural logarithm of its probability, before temperature and the like. */
export interface TokenLogprob {
  readonly id: number;
  readonly logprob: number;
}

/** Log-probabilities at one place of the answer. */
export interface TokenLogprobs extends TokenLogprob {
  /** The likeliest tokens there, best first; as many as `sampling.logprobs` asked for. */
  readonly top: readonly TokenLogprob[];
}

/** Wall-clock milliseconds of a request. */
export interface GenerationTimings {
  /** Time to first token, from the request on: waiting and prefill included. Null if there was none. */
  readonly ttftMs: number | null;
  /** Time per output token after the first. Null with fewer than two. */
  readonly tpotMs: number | null;
  /** From the request to its end. */
  readonly totalMs: number;
}

/**
 * A piece of an answer: everything since the delta before it. A consumer that takes its time finds several tokens in
 * one delta; nothing is lost and nobody waits for it.
 */
export interface GenerationDelta {
  /**
   * Text that became certain. It may lag behind `tokenIds`: a character whose bytes are incomplete, and what may be the
   * beginning of a stop text, come later. All texts put together are the answer.
   */
  readonly text: string;
  /** Tokens generated, the one that ended the answer included. */
  readonly tokenIds: readonly number[];
  /** One entry for each of `tokenIds`, if `sampling.logprobs` asked for them. */
  readonly logprobs?: readonly TokenLogprobs[];
  /** Set in the last delta, null before. */
  readonly finishReason: FinishReason | null;
  /** In the first delta: the prompt as the model saw it. */
  readonly promptTokenIds?: readonly number[];
  /** In the first delta, when tokens are drawn: the seed that draws them again. */
  readonly seed?: number;
  /** In the last delta. */
  readonly timings?: GenerationTimings;
}

/** How likely a model finds a text. */
export interface ScoreResult {
  /** Token ids given. */
  readonly tokens: number;
  /** Mean of `nll`. */
  readonly nllMean: number;
  /** Negative log-likelihood (natural logarithm) of every token but the first, given all before it: `[tokens - 1]`. */
  readonly nll: Float64Array;
}
