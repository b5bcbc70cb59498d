/**
 * The step channel: who may touch the arrays of a step when. One coordinator and `worldSize` ranks signal each other
 * through words of a SharedArrayBuffer; no message is posted.
 *
 *     coordinator                           every rank
 *     writes the arrays
 *     post(RUN): pending, sequence       -> waitForStep() returns
 *                                           reads the arrays, rank 0 writes the results
 *     waitDone() resolves                <- finishStep(): the last one signals, if this step is awaited
 *     reads the results
 *
 * Up to MAX_STEPS_IN_FLIGHT steps may be posted and not done, each with arrays of its own: ranks then find the next step
 * when they have finished one, and nobody waits for the coordinator. They run steps in order, and a rank begins one only
 * when rank 0 has finished the step before: its results are there. Steps before the one that is awaited wake nobody.
 *
 * Every access to a shared word is an Atomics operation and so sequentially consistent: what the coordinator wrote to
 * the arrays before it posted is seen by a rank that saw the new sequence number, and what the ranks wrote before they
 * finished is seen by the coordinator that saw nothing pending. No wait is unbounded: every one is cut into slices,
 * after which the words are looked at again.
 */
import { InternalError, invariant } from "../core/errors.js";

/** Words of one line. Words written by different threads never share one: adjacent-line prefetch makes it 128 bytes. */
const LINE_WORDS = 32;
const WORD_BYTES = Int32Array.BYTES_PER_ELEMENT;

/** Steps that may be posted and not done. A power of two, so that numbers may wrap. */
export const MAX_STEPS_IN_FLIGHT = 4;

/** Number of the step last posted; it wraps. Ranks wait on it. Written by the coordinator. */
const SEQUENCE = 0 * LINE_WORDS;
/** Whether ranks are to leave their loops: 1 once they are. Written by the coordinator, before SEQUENCE. */
const STOPPED = 1 * LINE_WORDS;
/** Counts the events the coordinator waits for: a step done, a failure. Only its changing matters. */
const SIGNAL = 2 * LINE_WORDS;
/** 0, or 1 + the first rank that failed, or 1 + worldSize when the coordinator gave up. Set once. */
const FAILURE = 3 * LINE_WORDS;
/** Number of the step that the coordinator waits for: those before it are done without a signal. Written by the coordinator. */
const AWAITED = 4 * LINE_WORDS;
/** Ranks that are not done with a step yet. Set by the coordinator before SEQUENCE, counted down by the ranks. */
const FIRST_PENDING_LINE = 5;
const FIRST_RANK_LINE = FIRST_PENDING_LINE + MAX_STEPS_IN_FLIGHT;

/** In a rank's line: number of the step it finished last. Written by the rank. */
const RANK_FINISHED = 0;
/** In a rank's line: bytes of weights read so far, 64 bits wide, in 64-bit words. Written by the rank. */
const RANK_LOADED_64 = 8;

/** Asks the ranks to run the step that the arrays hold. */
export const STEP_RUN = 1;
/** Asks the ranks to leave their step loop. */
export const STEP_STOP = 2;
export type StepKind = typeof STEP_RUN | typeof STEP_STOP;

/** How a step ended for the coordinator. */
export type StepOutcome = "done" | "failed" | "timedOut";

/** The longest uninterrupted wait of a rank. An idle rank looks up once in that time. */
const RANK_WAIT_SLICE_MS = 1000;
/** The coordinator that waits looks up once in that time. */
const COORDINATOR_WAIT_SLICE_MS = 250;
/** Looks at the sequence number between two looks at the clock while a rank spins. */
const SPIN_LOOKS = 64;

/** What a rank needs to take part. Plain data: it crosses threads. */
export interface StepChannelHandle {
  readonly buffer: SharedArrayBuffer;
  readonly worldSize: number;
}

const pendingOf = (sequence: number): number =>
  (FIRST_PENDING_LINE + (sequence & (MAX_STEPS_IN_FLIGHT - 1))) * LINE_WORDS;
const rankLine = (rank: number): number => (FIRST_RANK_LINE + rank) * LINE_WORDS;
const loadedWord = (rank: number): number => rankLine(rank) / 2 + RANK_LOADED_64;

/**
 * Tells the coordinator that something happened. The word is changed before the wake-up, so that a coordinator on its
 * way to sleep, which compares the word with what it read before it looked around, does not fall asleep over it.
 */
function signal(words: Int32Array): void {
  Atomics.add(words, SIGNAL, 1);
  Atomics.notify(words, SIGNAL);
}

function hasFinished(words: Int32Array, rank: number, sequence: number): boolean {
  return ((Atomics.load(words, rankLine(rank) + RANK_FINISHED) - sequence) | 0) >= 0;
}

/** The coordinator's end. */
export class CoordinatorChannel {
  readonly handle: StepChannelHandle;
  readonly #words: Int32Array;
  readonly #loaded: BigInt64Array;
  readonly #worldSize: number;
  /**
   * Wakes a `waitDone` from time to time, and holds the process meanwhile: a pending Atomics.waitAsync does not. One timer
   * for all waits: a timeout of waitAsync's own would be left behind by every step, to wake the thread for nothing later.
   */
  #alarm: NodeJS.Timeout | undefined;
  /** Whether somebody waits, and whether anybody did since the alarm went off last. */
  #waiting = false;
  #waited = false;

  constructor(worldSize: number) {
    const buffer = new SharedArrayBuffer((FIRST_RANK_LINE + worldSize) * LINE_WORDS * WORD_BYTES);
    this.handle = { buffer, worldSize };
    this.#words = new Int32Array(buffer);
    this.#loaded = new BigInt64Array(buffer);
    this.#worldSize = worldSize;
  }

  /**
   * Posts a step to all ranks and returns its number. STEP_RUN needs the step MAX_STEPS_IN_FLIGHT before it to be done;
   * STEP_STOP may be posted at any time and supersedes steps that a rank has not begun.
   */
  post(kind: StepKind): number {
    const words = this.#words;
    const sequence = (Atomics.load(words, SEQUENCE) + 1) | 0;
    // These come first: a rank that sees the new number must not read what was there before.
    if (kind === STEP_STOP) Atomics.store(words, STOPPED, 1);
    else {
      const pending = pendingOf(sequence);
      invariant(Atomics.load(words, pending) === 0, "a step was posted while too many are in flight");
      Atomics.store(words, pending, this.#worldSize);
    }
    Atomics.store(words, SEQUENCE, sequence);
    Atomics.notify(words, SEQUENCE);
    return sequence;
  }

  /** Has `waitDone` wait for this step from now on, also one in progress: it is not woken by those before it. */
  awaitStep(sequence: number): void {
    Atomics.store(this.#words, AWAITED, sequence);
  }

  /**
   * Resolves when every rank is done with the step, the last one posted by default, and so with all before it ("done"),
   * when a rank failed or `interrupt` was called ("failed"), or when no step got done for `timeoutMs` ("timedOut"; found
   * after twice that time at most). Keeps the process alive until then. Never rejects. One call at a time.
   */
  async waitDone(timeoutMs: number, sequence = Atomics.load(this.#words, SEQUENCE)): Promise<StepOutcome> {
    const words = this.#words;
    let finished = this.finished;
    let deadline = performance.now() + timeoutMs;
    this.awaitStep(sequence);
    this.#beginWait();
    try {
      for (;;) {
        // Read before looking around: an event after the look changes it, and the wait below returns at once.
        const seen = Atomics.load(words, SIGNAL);
        if (this.isDone(Atomics.load(words, AWAITED))) return "done";
        if (Atomics.load(words, FAILURE) !== 0) return "failed";
        let leftMs = deadline - performance.now();
        if (leftMs <= 0) {
          if (this.finished === finished) return "timedOut";
          finished = this.finished;
          deadline = performance.now() + timeoutMs;
          leftMs = timeoutMs;
        }
        // The alarm is too rare for a deadline that is close.
        const wait =
          leftMs < COORDINATOR_WAIT_SLICE_MS
            ? Atomics.waitAsync(words, SIGNAL, seen, leftMs)
            : Atomics.waitAsync(words, SIGNAL, seen);
        if (wait.async) await wait.value;
      }
    } finally {
      this.#waiting = false;
      this.#alarm?.unref();
    }
  }

  /** Whether every rank is done with the step, one of the last MAX_STEPS_IN_FLIGHT that were posted. */
  isDone(sequence: number): boolean {
    return Atomics.load(this.#words, pendingOf(sequence)) === 0;
  }

  #beginWait(): void {
    this.#waiting = true;
    this.#waited = true;
    if (this.#alarm === undefined) this.#alarm = setInterval(() => this.#lookUp(), COORDINATOR_WAIT_SLICE_MS);
    else this.#alarm.ref();
  }

  /** An idle channel holds no timer. */
  #lookUp(): void {
    if (!this.#waited) this.close();
    this.#waited = this.#waiting;
    if (this.#waiting) Atomics.notify(this.#words, SIGNAL);
  }

  /** Ends a `waitDone` in progress, and every later one, as failed. */
  interrupt(): void {
    Atomics.compareExchange(this.#words, FAILURE, 0, 1 + this.#worldSize);
    signal(this.#words);
  }

  /** The rank that failed first; null if none did. */
  get failedRank(): number | null {
    const value = Atomics.load(this.#words, FAILURE);
    return value === 0 || value === 1 + this.#worldSize ? null : value - 1;
  }

  /** Number of the last step that every rank has finished. */
  get finished(): number {
    const words = this.#words;
    let least = Atomics.load(words, rankLine(0) + RANK_FINISHED);
    for (let rank = 1; rank < this.#worldSize; rank++) {
      const finished = Atomics.load(words, rankLine(rank) + RANK_FINISHED);
      if (((finished - least) | 0) < 0) least = finished;
    }
    return least;
  }

  /** Ranks that have not finished the step, the last one posted by default. */
  unfinishedRanks(sequence = Atomics.load(this.#words, SEQUENCE)): number[] {
    const ranks = Array.from({ length: this.#worldSize }, (_, rank) => rank);
    return ranks.filter((rank) => !hasFinished(this.#words, rank, sequence));
  }

  /** Bytes of weights a rank has read so far. */
  bytesLoaded(rank: number): number {
    return Number(Atomics.load(this.#loaded, loadedWord(rank)));
  }

  /** Gives up the timer. */
  close(): void {
    clearInterval(this.#alarm);
    this.#alarm = undefined;
  }
}

/** A rank's end. */
export class RankChannel {
  readonly #words: Int32Array;
  readonly #loaded: BigInt64Array;
  readonly #rank: number;
  readonly #worldSize: number;
  readonly #spinMs: number;
  /** Number of the step taken last. Starts at 0, not at what the word holds now: a step posted earlier must be run. */
  #sequence = 0;

  /** `spinMs`: how long `waitForStep` spins before it sleeps, twice at most; 0 where there are more ranks than cores. */
  constructor(handle: StepChannelHandle, rank: number, spinMs: number) {
    if (rank < 0 || rank >= handle.worldSize) throw new InternalError(`a step channel has no rank ${rank}`, { rank });
    this.#words = new Int32Array(handle.buffer);
    this.#loaded = new BigInt64Array(handle.buffer);
    this.#rank = rank;
    this.#worldSize = handle.worldSize;
    this.#spinMs = spinMs;
  }

  /** Number of the step taken last, from 0. */
  get step(): number {
    return this.#sequence - 1;
  }

  /** Blocks the thread until the next step is posted, and can be begun, and returns its kind. */
  waitForStep(): StepKind {
    const words = this.#words;
    const taken = this.#sequence;
    this.#spin(SEQUENCE, taken);
    // Atomics.wait compares and goes to sleep in one: a step posted after the look is not slept over.
    while (Atomics.load(words, SEQUENCE) === taken) Atomics.wait(words, SEQUENCE, taken, RANK_WAIT_SLICE_MS);
    this.#waitForResults(taken);
    // A stop supersedes the steps before it: there is nobody left who wants them.
    if (Atomics.load(words, STOPPED) !== 0) return STEP_STOP;
    this.#sequence = (taken + 1) | 0;
    return STEP_RUN;
  }

  /** Rank 0 writes results until it finishes a step, and the next one may be made of them. */
  #waitForResults(sequence: number): void {
    if (this.#rank === 0) return;
    const words = this.#words;
    const word = rankLine(0) + RANK_FINISHED;
    for (;;) {
      const finished = Atomics.load(words, word);
      if (((finished - sequence) | 0) >= 0 || Atomics.load(words, STOPPED) !== 0) return;
      this.#spin(word, finished);
      Atomics.wait(words, word, finished, RANK_WAIT_SLICE_MS);
    }
  }

  /** Says that this rank is done with the arrays of the step. */
  finishStep(): void {
    const words = this.#words;
    const finished = rankLine(this.#rank) + RANK_FINISHED;
    Atomics.store(words, finished, this.#sequence);
    if (this.#rank === 0 && this.#worldSize > 1) Atomics.notify(words, finished);
    // Only the last rank signals: the coordinator wakes once, and has nothing left to wait for. It says what it waits for
    // before it looks at what is pending: one of the two sees the other.
    if (Atomics.sub(words, pendingOf(this.#sequence), 1) !== 1) return;
    if (((this.#sequence - Atomics.load(words, AWAITED)) | 0) >= 0) signal(words);
  }

  /** Says that this rank cannot go on; the step will not be done. */
  fail(): void {
    Atomics.compareExchange(this.#words, FAILURE, 0, 1 + this.#rank);
    signal(this.#words);
  }

  /** Publishes how many bytes of weights this rank has read so far. */
  reportLoaded(bytes: number): void {
    Atomics.store(this.#loaded, loadedWord(this.#rank), BigInt(bytes));
  }

  /** Looks at a word until it is no longer `seen`, for as long as spinning is worth it. */
  #spin(word: number, seen: number): void {
    if (this.#spinMs <= 0) return;
    const until = performance.now() + this.#spinMs;
    do {
      for (let look = 0; look < SPIN_LOOKS; look++) {
        if (Atomics.load(this.#words, word) !== seen) return;
      }
    } while (performance.now() < until);
  }
}
