/** Who takes part in a bench of whole models. */

/** An engine with a model in memory, ready to be timed. */
export interface Contestant {
  readonly name: string;
  /** Whether it is a peer rather than shardloom. */
  readonly peer: boolean;
  /** Reads a prompt of so many tokens up to the first token of the answer; tokens of the prompt a second. */
  prefill(promptTokens: number): Promise<number>;
  /** Tokens a second of all sequences together, the first token of each left out. */
  decode(work: DecodeWork): Promise<number>;
  /**
   * Log-probabilities of the likeliest tokens after a prompt, to see that what is timed is right; null where the
   * contestant does not tell.
   */
  nextToken(promptTokenIds: readonly number[]): Promise<NextToken | null>;
  close(): Promise<void>;
}

export interface DecodeWork {
  readonly sequences: number;
  /** Tokens of each sequence's prompt. */
  readonly contextTokens: number;
  /** Tokens of each sequence's answer. */
  readonly tokens: number;
}

/** Token ids and their log-probabilities, likeliest first. */
export type NextToken = readonly { readonly id: number; readonly logprob: number }[];

/** What contestants are prepared for. */
export interface Capacity {
  /** Longest sequence, prompt and answer together. */
  readonly contextTokens: number;
  readonly sequences: number;
}
