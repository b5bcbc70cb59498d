/**
 * The step channel: who may touch the arrays of a step when. One coordinator and `worldSize` ranks signal each other
 * through words of a SharedArrayBuffer; no message is posted.
 *
 *     coordinator                           every rank
 *     writes the arrays
 *     post(RUN): kind, pending, sequence -> waitForStep() returns
 *                                           reads the arrays, rank 0 writes the results
 *     waitDone() resolves                <- finishStep(): the last one signals
 *     reads the results
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

/** Number of the step last posted; it wraps. Ranks wait on it. Written by the coordinator. */
const SEQUENCE = 0 * LINE_WORDS;
/** What the step with that number asks for: STEP_RUN or STEP_STOP. Written by the coordinator, before SEQUENCE. */
const KIND = 1 * LINE_WORDS;
/** Ranks that are not done with the step yet. Set by the coordinator before SEQUENCE, counted down by the ranks. */
const PENDING = 2 * LINE_WORDS;
/** Counts the events the coordinator waits for: a step done, a failure. Only its changing matters. */
const SIGNAL = 3 * LINE_WORDS;
/** 0, or 1 + the first rank that failed, or 1 + worldSize when the coordinator gave up. Set once. */
const FAILURE = 4 * LINE_WORDS;
const FIRST_RANK_LINE = 5;

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
/** The longest uninterrupted wait of the coordinator. */
const COORDINATOR_WAIT_SLICE_MS = 250;
/** Looks at the sequence number between two looks at the clock while a rank spins. */
const SPIN_LOOKS = 64;
/** The longest period a timer can have. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** What a rank needs to take part. Plain data: it crosses threads. */
export interface StepChannelHandle {
  readonly buffer: SharedArrayBuffer;
  readonly worldSize: number;
}

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

/** The coordinator's end. */
export class CoordinatorChannel {
  readonly handle: StepChannelHandle;
  readonly #words: Int32Array;
  readonly #loaded: BigInt64Array;
  readonly #worldSize: number;
  /** Holds the process while a step is in flight: a pending Atomics.waitAsync does not. */
  readonly #keepAlive: NodeJS.Timeout;

  constructor(worldSize: number) {
    const buffer = new SharedArrayBuffer((FIRST_RANK_LINE + worldSize) * LINE_WORDS * WORD_BYTES);
    this.handle = { buffer, worldSize };
    this.#words = new Int32Array(buffer);
    this.#loaded = new BigInt64Array(buffer);
    this.#worldSize = worldSize;
    this.#keepAlive = setInterval(() => {}, LONGEST_TIMER_MS).unref();
  }

  /**
   * Posts a step to all ranks. STEP_RUN needs the step before it to be done; STEP_STOP may be posted at any time and
   * supersedes a step that a rank has not begun.
   */
  post(kind: StepKind): void {
    const words = this.#words;
    if (kind === STEP_RUN) {
      invariant(Atomics.load(words, PENDING) === 0, "a step was posted while another one is in flight");
      Atomics.store(words, PENDING, this.#worldSize);
    }
    // Kind and count come first: a rank that sees the new number must not read those of the step before.
    Atomics.store(words, KIND, kind);
    Atomics.add(words, SEQUENCE, 1);
    Atomics.notify(words, SEQUENCE);
  }

  /**
   * Resolves when every rank is done with the step ("done"), when a rank failed or `interrupt` was called ("failed"),
   * or after `timeoutMs` ("timedOut"). Keeps the process alive until then. Never rejects.
   */
  async waitDone(timeoutMs: number): Promise<StepOutcome> {
    const words = this.#words;
    const deadline = performance.now() + timeoutMs;
    this.#keepAlive.ref();
    try {
      for (;;) {
        // Read before looking around: an event after the look changes it, and the wait below returns at once.
        const seen = Atomics.load(words, SIGNAL);
        if (Atomics.load(words, PENDING) === 0) return "done";
        if (Atomics.load(words, FAILURE) !== 0) return "failed";
        const leftMs = deadline - performance.now();
        if (leftMs <= 0) return "timedOut";
        const wait = Atomics.waitAsync(words, SIGNAL, seen, Math.min(leftMs, COORDINATOR_WAIT_SLICE_MS));
        if (wait.async) await wait.value;
      }
    } finally {
      this.#keepAlive.unref();
    }
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

  /** Ranks that have not finished the step posted last. */
  unfinishedRanks(): number[] {
    const sequence = Atomics.load(this.#words, SEQUENCE);
    const ranks = Array.from({ length: this.#worldSize }, (_, rank) => rank);
    return ranks.filter((rank) => Atomics.load(this.#words, rankLine(rank) + RANK_FINISHED) !== sequence);
  }

  /** Bytes of weights a rank has read so far. */
  bytesLoaded(rank: number): number {
    return Number(Atomics.load(this.#loaded, loadedWord(rank)));
  }

  /** Gives up the timer; the channel must not be waited on any more. */
  close(): void {
    clearInterval(this.#keepAlive);
  }
}

/** A rank's end. */
export class RankChannel {
  readonly #words: Int32Array;
  readonly #loaded: BigInt64Array;
  readonly #rank: number;
  readonly #spinMs: number;
  /** Number of the step taken last. Starts at 0, not at what the word holds now: a step posted earlier must be run. */
  #sequence = 0;

  /** `spinMs`: how long `waitForStep` spins before it sleeps; 0 where there are more ranks than cores. */
  constructor(handle: StepChannelHandle, rank: number, spinMs: number) {
    if (rank < 0 || rank >= handle.worldSize) throw new InternalError(`a step channel has no rank ${rank}`, { rank });
    this.#words = new Int32Array(handle.buffer);
    this.#loaded = new BigInt64Array(handle.buffer);
    this.#rank = rank;
    this.#spinMs = spinMs;
  }

  /** Blocks the thread until the next step is posted and returns its kind. */
  waitForStep(): StepKind {
    const words = this.#words;
    this.#spin();
    // Atomics.wait compares and goes to sleep in one: a step posted after the look is not slept over.
    while (Atomics.load(words, SEQUENCE) === this.#sequence) {
      Atomics.wait(words, SEQUENCE, this.#sequence, RANK_WAIT_SLICE_MS);
    }
    this.#sequence = Atomics.load(words, SEQUENCE);
    // A stop that supersedes this step may overwrite its kind here, before its own number is seen: then there is
    // nobody left who wants the step.
    return Atomics.load(words, KIND) === STEP_RUN ? STEP_RUN : STEP_STOP;
  }

  /** Says that this rank is done with the arrays of the step. */
  finishStep(): void {
    const words = this.#words;
    Atomics.store(words, rankLine(this.#rank) + RANK_FINISHED, this.#sequence);
    // Only the last rank signals: the coordinator wakes once a step, and has nothing left to wait for.
    if (Atomics.sub(words, PENDING, 1) === 1) signal(words);
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

  #spin(): void {
    if (this.#spinMs <= 0) return;
    const until = performance.now() + this.#spinMs;
    do {
      for (let look = 0; look < SPIN_LOOKS; look++) {
        if (Atomics.load(this.#words, SEQUENCE) !== this.#sequence) return;
      }
    } while (performance.now() < until);
  }
}
