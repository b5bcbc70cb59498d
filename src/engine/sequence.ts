/** The state of one request's sequence: its tokens, how many of them are computed, and where. Knows no text. */
import { invariant } from "../core/errors.js";
import { BlockTable } from "./kv-cache.js";
import type { SamplingParams } from "./sampling.js";

/**
 * Why an answer ended: a stop token or stop text came ("stop"), it has its maximum of tokens or the context is full
 * ("length"), or the caller gave it up ("abort").
 */
export type FinishReason = "stop" | "length" | "abort";

export type SequenceStatus = "waiting" | "running" | "finished";

/** What a sequence is computed for. */
export type SequenceTask =
  /** Tokens are sampled and appended. */
  | { readonly kind: "generate"; readonly sampling: SamplingParams }
  /** Every token but the first is scored given those before it. */
  | { readonly kind: "score" };

export class Sequence {
  /** Order of arrival. */
  readonly id: number;
  readonly task: SequenceTask;
  readonly promptLength: number;
  /** Blocks of KV cache, changed by the scheduler. */
  readonly blocks = new BlockTable();
  #tokens: Int32Array;
  #length: number;

  status: SequenceStatus = "waiting";
  finishReason: FinishReason | null = null;
  /**
   * Tokens whose keys and values are in the cache, or will be when the steps in flight are done. Falls back to 0 when the
   * sequence is preempted.
   */
  computed = 0;
  /** What steps in flight will bring: tokens of the answer, or scores. */
  expected = 0;
  /** Scoring: tokens after the first whose score is known. Survives preemption. */
  scored = 0;

  // Part in the step planned last that it has a part in; written by the scheduler, meaningful until the next one is planned.
  /** Number of that step. */
  step = -1;
  /** Tokens computed in this step, from `computed` on. */
  stepTokens = 0;
  /** Rows of logits asked for: the last ones of `stepTokens`. */
  stepOutputs = 0;
  /** Index of the first of them among the outputs of the step. */
  firstOutput = 0;
  /** Output of the step before that chooses the token after the last one known; meaningful where that is computed. */
  feed = 0;

  constructor(id: number, task: SequenceTask, promptTokenIds: readonly number[]) {
    invariant(promptTokenIds.length > (task.kind === "score" ? 1 : 0), "a sequence has too few tokens for its task");
    this.id = id;
    this.task = task;
    this.promptLength = promptTokenIds.length;
    this.#tokens = Int32Array.from(promptTokenIds);
    this.#length = promptTokenIds.length;
  }

  /** Tokens of prompt and answer. */
  get length(): number {
    return this.#length;
  }

  /** Tokens of the answer. */
  get outputLength(): number {
    return this.#length - this.promptLength;
  }

  /** The same, with those that steps in flight choose. */
  get expectedLength(): number {
    return this.outputLength + this.expected;
  }

  /** Whether nothing is left to compute once the steps in flight are done, whatever they choose. */
  get exhausted(): boolean {
    return this.task.kind === "generate" && this.expectedLength >= this.task.sampling.maxTokens;
  }

  /** Tokens that must be in the cache before the task can go on. The last token of a text to score predicts nothing. */
  get goal(): number {
    return this.task.kind === "score" ? this.#length - 1 : this.#length + this.expected;
  }

  /** Tokens to compute now. */
  get pending(): number {
    return this.goal - this.computed;
  }

  /** Whether a running sequence goes on token by token: everything but its last token is computed. */
  get decoding(): boolean {
    return this.task.kind === "generate" && this.pending === 1;
  }

  tokenAt(position: number): number {
    invariant(position >= 0 && position < this.#length, "a sequence was asked for a token it does not have");
    return this.#tokens[position] ?? 0;
  }

  /** Notes that so many more scores are known. */
  addScores(count: number): void {
    this.expected = Math.max(0, this.expected - count);
    this.scored += count;
  }

  /** Appends a sampled token, the one that was expected if one was. */
  append(tokenId: number): void {
    if (this.expected > 0) this.expected--;
    if (this.#length === this.#tokens.length) {
      const larger = new Int32Array(Math.max(16, this.#length * 2));
      larger.set(this.#tokens);
      this.#tokens = larger;
    }
    this.#tokens[this.#length++] = tokenId;
  }
}
