/**
 * Which tokens of which sequences the next step computes: first come, first served, continuously batched. Pure and
 * deterministic: knows no clock, no text and no rank, and is told of everything by calls.
 *
 * A step is filled in three passes: one token for every running sequence that decodes; then chunks of running
 * sequences whose prompt is not computed yet; then sequences that wait, admitted in order while tokens, outputs and
 * blocks last.
 *
 * Blocks are taken for a sequence's whole known length when it is admitted, and one at a time while it decodes. When
 * none is left, the youngest running sequence is preempted: it gives back its blocks and, once admitted again, computes
 * its prompt and the tokens it has generated so far anew. Nothing that was streamed is lost.
 *
 * Invariants:
 * - `running` and `waiting` are in order of arrival, and everything running came before everything waiting.
 * - A sequence that decodes is older than those it preempts, so nothing planned in a step is preempted in it.
 * - A step makes progress whenever there is a sequence: the oldest one fits into the cache alone (see `add`), and
 *   preempting is always possible until it is alone.
 */
import { invariant } from "../core/errors.js";
import type { StepLimits } from "../rank/step.js";
import type { BlockPool } from "./kv-cache.js";
import type { FinishReason, Sequence } from "./sequence.js";

/** What one step computes. The object is reused by every step. */
export interface StepPlan {
  /** In the order they stand in the step; see `Sequence.stepTokens`. */
  readonly sequences: readonly Sequence[];
  readonly tokens: number;
  readonly outputs: number;
}

export type SchedulerLimits = Pick<StepLimits, "maxTokens" | "maxSequences" | "maxOutputs" | "maxBlocksPerSequence">;

export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #pool: BlockPool;
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  readonly #plan: { sequences: Sequence[]; tokens: number; outputs: number } = { sequences: [], tokens: 0, outputs: 0 };
  #preemptions = 0;

  constructor(limits: SchedulerLimits, pool: BlockPool) {
    invariant(limits.maxTokens > 0 && limits.maxSequences > 0 && limits.maxOutputs > 0, "a step must have room");
    this.#limits = limits;
    this.#pool = pool;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  get running(): number {
    return this.#running.length;
  }

  /** Times a sequence was preempted so far. */
  get preemptions(): number {
    return this.#preemptions;
  }

  get hasWork(): boolean {
    return this.#waiting.length > 0 || this.#running.length > 0;
  }

  /** The longest sequence that can be computed, by the size of the cache and of block tables. */
  get capacity(): number {
    return Math.min(this.#pool.blocks, this.#limits.maxBlocksPerSequence) * this.#pool.blockSize;
  }

  /** Queues a new sequence. It must never need more than `capacity` tokens in the cache. */
  add(sequence: Sequence): void {
    invariant(sequence.status === "waiting" && sequence.computed === 0, "a sequence was queued twice");
    invariant(sequence.goal <= this.capacity, "a sequence was queued that can never fit");
    this.#waiting.push(sequence);
  }

  /** Plans the next step. Empty only if there is no work. `complete` must follow before the next plan. */
  schedule(): StepPlan {
    const plan = this.#plan;
    invariant(plan.sequences.length === 0, "a step was planned while another one is in flight");
    this.#planDecodes();
    this.#planPrefills();
    // What was just preempted cannot come back in the same step: some of the blocks it needs were taken.
    this.#admit();
    invariant(plan.tokens > 0 || !this.hasWork, "a step was planned that computes nothing");
    return plan;
  }

  /** Notes that the planned step has run: its tokens are in the cache. */
  complete(): void {
    for (const sequence of this.#plan.sequences) {
      // A sequence that was finished while the step ran has no blocks any more.
      if (sequence.status === "running") sequence.computed += sequence.stepTokens;
    }
    this.#plan.sequences.length = 0;
    this.#plan.tokens = 0;
    this.#plan.outputs = 0;
  }

  /** Ends a sequence, at any time, and takes its blocks back at once. Does nothing if it has ended already. */
  finish(sequence: Sequence, reason: FinishReason): void {
    if (sequence.status === "finished") return;
    const list = sequence.status === "running" ? this.#running : this.#waiting;
    const index = list.indexOf(sequence);
    invariant(index >= 0, "a sequence was finished that the scheduler does not know");
    list.splice(index, 1);
    // Safe while a step that uses the blocks is in flight: nobody gets them before the next plan.
    this.#pool.release(sequence.blocks);
    sequence.status = "finished";
    sequence.finishReason = reason;
  }

  get #tokensLeft(): number {
    return this.#limits.maxTokens - this.#plan.tokens;
  }

  get #outputsLeft(): number {
    return this.#limits.maxOutputs - this.#plan.outputs;
  }

  #planDecodes(): void {
    const running = this.#running;
    // The list may shrink from its end while we walk: that is where victims are taken.
    for (let i = 0; i < running.length && this.#tokensLeft > 0 && this.#outputsLeft > 0; i++) {
      const sequence = running[i];
      if (sequence?.decoding !== true) continue;
      if (this.#makeRoom(sequence)) this.#place(sequence, 1);
    }
  }

  /** Gives `sequence` the block its next token needs, preempting younger ones; false if it had to give way itself. */
  #makeRoom(sequence: Sequence): boolean {
    while (this.#pool.missing(sequence.blocks, sequence.goal) > this.#pool.freeBlocks) {
      const victim = this.#running.pop();
      invariant(victim !== undefined, "a sequence does not fit into an empty cache");
      this.#preempt(victim);
      if (victim === sequence) return false;
    }
    this.#pool.grow(sequence.blocks, sequence.goal);
    return true;
  }

  #preempt(sequence: Sequence): void {
    this.#pool.release(sequence.blocks);
    sequence.computed = 0;
    sequence.status = "waiting";
    // Older than everything that waits, so its place is the first.
    this.#waiting.unshift(sequence);
    this.#preemptions++;
  }

  #planPrefills(): void {
    for (const sequence of this.#running) {
      if (this.#tokensLeft === 0) return;
      if (sequence.decoding) continue;
      const tokens = this.#chunkOf(sequence);
      if (tokens > 0) this.#place(sequence, tokens);
    }
  }

  #admit(): void {
    for (;;) {
      const sequence = this.#waiting[0];
      if (sequence === undefined || this.#running.length === this.#limits.maxSequences) return;
      // A block is left for each one running: admitting into the last blocks would get the newcomer preempted at once.
      const blocks = this.#pool.blocksFor(sequence.goal) + this.#running.length;
      if (blocks > this.#pool.freeBlocks) return;
      const tokens = this.#chunkOf(sequence);
      if (tokens === 0) return;
      this.#waiting.shift();
      this.#running.push(sequence);
      sequence.status = "running";
      this.#pool.grow(sequence.blocks, sequence.goal);
      this.#place(sequence, tokens);
    }
  }

  /** How many of its pending tokens the step has room for. */
  #chunkOf(sequence: Sequence): number {
    const tokens = Math.min(sequence.pending, this.#tokensLeft);
    if (sequence.task.kind === "score") return Math.min(tokens, rescored(sequence, tokens) + this.#outputsLeft);
    // Only the last pending token is sampled from; without an output it has to wait.
    return this.#outputsLeft > 0 ? tokens : Math.min(tokens, sequence.pending - 1);
  }

  #place(sequence: Sequence, tokens: number): void {
    const plan = this.#plan;
    sequence.stepTokens = tokens;
    sequence.stepOutputs =
      sequence.task.kind === "score" ? tokens - rescored(sequence, tokens) : tokens === sequence.pending ? 1 : 0;
    sequence.firstOutput = plan.outputs;
    plan.sequences.push(sequence);
    plan.tokens += tokens;
    plan.outputs += sequence.stepOutputs;
  }
}

/** How many of the next `tokens` tokens only restore a preempted sequence's cache: their scores are known. */
function rescored(sequence: Sequence, tokens: number): number {
  return Math.min(tokens, Math.max(0, sequence.scored - sequence.computed));
}
