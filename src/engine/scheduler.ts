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
 * A step may be planned while those before it run (`advance`). What they choose is not known yet, only that it will be one
 * token more for every sequence sampled from: the new step takes it from the results of the step before (`Sequence.feed`).
 * When it turns out that the sequence has ended with that token, its part in the new step was in vain.
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

/** What one step computes. The object is used again when as many steps have been planned as may be in flight. */
export interface StepPlan {
  /** In the order they stand in the step; see `Sequence.stepTokens`. */
  readonly sequences: readonly Sequence[];
  /** Of each of them, where its outputs begin and how many they are. */
  readonly firstOutputs: readonly number[];
  readonly outputCounts: readonly number[];
  readonly tokens: number;
  readonly outputs: number;
}

interface Plan extends StepPlan {
  readonly sequences: Sequence[];
  readonly firstOutputs: number[];
  readonly outputCounts: number[];
  tokens: number;
  outputs: number;
}

const emptyPlan = (): Plan => ({ sequences: [], firstOutputs: [], outputCounts: [], tokens: 0, outputs: 0 });

export type SchedulerLimits = Pick<StepLimits, "maxTokens" | "maxSequences" | "maxOutputs" | "maxBlocksPerSequence">;

export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #pool: BlockPool;
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  /** Of the steps planned last, in turn: they may still run. */
  readonly #plans: readonly Plan[];
  /** Of the step being planned. */
  #plan = emptyPlan();
  /** Its number: of steps that compute something. */
  #step = 0;
  /** Whether the plan has not been taken up by `advance`. */
  #planned = false;
  #preemptions = 0;

  constructor(limits: SchedulerLimits, pool: BlockPool, stepsInFlight = 1) {
    invariant(limits.maxTokens > 0 && limits.maxSequences > 0 && limits.maxOutputs > 0, "a step must have room");
    this.#plans = Array.from({ length: stepsInFlight }, emptyPlan);
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

  /**
   * Plans the next step. Empty only if there is no work, or none until a step in flight has its results. `advance` must
   * follow before the next plan.
   */
  schedule(): StepPlan {
    invariant(!this.#planned, "a step was planned while another one was being written");
    const plan = this.#plans[this.#step % this.#plans.length] ?? this.#plan;
    this.#plan = plan;
    this.#planned = true;
    clear(plan);
    this.#planDecodes();
    this.#planPrefills();
    // What was just preempted cannot come back in the same step: some of the blocks it needs were taken.
    this.#admit();
    return plan;
  }

  /** Notes that the planned step is on its way: its tokens will be in the cache, and its results will come. */
  advance(): void {
    for (const sequence of this.#plan.sequences) {
      sequence.computed += sequence.stepTokens;
      sequence.expected += sequence.stepOutputs;
    }
    if (this.#plan.tokens > 0) this.#step++;
    this.#planned = false;
  }

  /** Ends a sequence, at any time, and takes its blocks back at once. Does nothing if it has ended already. */
  finish(sequence: Sequence, reason: FinishReason): void {
    if (sequence.status === "finished") return;
    const list = sequence.status === "running" ? this.#running : this.#waiting;
    const index = list.indexOf(sequence);
    invariant(index >= 0, "a sequence was finished that the scheduler does not know");
    list.splice(index, 1);
    // Safe while a step that uses the blocks is in flight: whoever gets them uses them in a later one.
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
      if (sequence?.decoding !== true || sequence.exhausted || !this.#knows(sequence)) continue;
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

  /**
   * Whether all that the sequence goes on from is there when the planned step begins. A token that a step in flight chooses
   * is, if that is the step before, and it is the last token; one that starts over has to wait for what it had.
   */
  #knows(sequence: Sequence): boolean {
    if (sequence.expected === 0) return true;
    if (sequence.task.kind === "score") return sequence.computed > 0;
    return sequence.decoding && sequence.step === this.#step - 1;
  }

  /** How many of its pending tokens the step has room for. */
  #chunkOf(sequence: Sequence): number {
    if (sequence.exhausted || !this.#knows(sequence)) return 0;
    const tokens = Math.min(sequence.pending, this.#tokensLeft);
    if (sequence.task.kind === "score") return Math.min(tokens, rescored(sequence, tokens) + this.#outputsLeft);
    // Only the last pending token is sampled from; without an output it has to wait.
    return this.#outputsLeft > 0 ? tokens : Math.min(tokens, sequence.pending - 1);
  }

  #place(sequence: Sequence, tokens: number): void {
    const plan = this.#plan;
    sequence.feed = sequence.firstOutput;
    sequence.step = this.#step;
    sequence.stepTokens = tokens;
    sequence.stepOutputs =
      sequence.task.kind === "score" ? tokens - rescored(sequence, tokens) : tokens === sequence.pending ? 1 : 0;
    sequence.firstOutput = plan.outputs;
    plan.sequences.push(sequence);
    plan.firstOutputs.push(sequence.firstOutput);
    plan.outputCounts.push(sequence.stepOutputs);
    plan.tokens += tokens;
    plan.outputs += sequence.stepOutputs;
  }
}

function clear(plan: Plan): void {
  plan.sequences.length = 0;
  plan.firstOutputs.length = 0;
  plan.outputCounts.length = 0;
  plan.tokens = 0;
  plan.outputs = 0;
}

/** How many of the next `tokens` tokens only restore a preempted sequence's cache: their scores are known. */
function rescored(sequence: Sequence, tokens: number): number {
  return Math.min(tokens, Math.max(0, sequence.scored - sequence.computed));
}
