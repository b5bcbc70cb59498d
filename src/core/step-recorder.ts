/**
 * The stopwatch of one rank: counts where the time of its steps goes, in shared memory (step-profile-memory.ts). Exists only
 * where profiling was asked for. Recording allocates nothing.
 */
import {
  arrivalAt,
  PHASE_COLLECTIVE_US,
  PHASE_COLLECTIVES,
  PHASE_GAP_US,
  PHASE_GAPS,
  PHASE_PROFILER_US,
  PHASE_STEP_US,
  PHASE_STEPS,
  PHASE_WAIT_US,
  PHASES,
  type Phase,
  ProfileBlock,
  ROW_BYTES,
  ROW_CALLS,
  ROW_FLOPS,
  ROW_US,
  type StepProfileHandle,
} from "./step-profile-memory.js";

/** Calls that `calibrate` makes to have them compiled, and those that it measures. */
const CALIBRATION_WARM_UP = 5000;
const CALIBRATION_CALLS = 300;
/** What is read between two of the latter: as in a step, where weights pass by, the caches then hold something else. */
const CALIBRATION_SWEEP_BYTES = 4 * 1024 * 1024;
const CACHE_LINE_BYTES = 64;

/** What a call moves and does; whoever says so may use the object again. */
export interface Moved {
  bytes: number;
  flops: number;
}

/** A call that may be made again: what it counts as then. A kernel's has a row. */
export interface NotedCall {
  readonly row: number | null;
  readonly moved: () => Readonly<Moved>;
}

/** A collective. */
export const COLLECTIVE: NotedCall = { row: null, moved: () => ({ bytes: 0, flops: 0 }) };

export class StepRecorder {
  readonly #block: ProfileBlock;
  readonly #arrivals: Float64Array;
  readonly #worldSize: number;
  readonly #rank: number;
  readonly #rowOf = new Map<string, number>();
  /** What turns this thread's clock into one that all threads of the process share. */
  readonly #clockOffsetUs = clockOffsetUs();
  /** What recording a call costs, within the time it records and around it. */
  #insideUs = 0;
  #aroundUs = 0;
  /** Where calls are noted now. */
  #noted: NotedCall[] | null = null;
  #phase = 0;
  #stepStart = 0;
  /** When the step before ended, and its phase; NaN before the first. */
  #stepEnd = Number.NaN;
  #collective = 0;

  constructor(handle: StepProfileHandle, rank: number) {
    this.#block = new ProfileBlock(handle, rank);
    this.#arrivals = new Float64Array(handle.buffer);
    this.#worldSize = handle.worldSize;
    this.#rank = rank;
  }

  /** Microseconds on a clock that only goes forward, and is that of every thread of the process. */
  nowUs(): number {
    return performance.now() * 1000 + this.#clockOffsetUs;
  }

  /** Number of the row with this name, which is made where there is none. */
  row(name: string): number {
    const known = this.#rowOf.get(name);
    if (known !== undefined) return known;
    const row = this.#block.addRow(name);
    this.#rowOf.set(name, row);
    return row;
  }

  /** A step begins. The time since the one before it counts where both are of the same phase. */
  beginStep(phase: Phase): void {
    const index = PHASES.indexOf(phase);
    const now = this.nowUs();
    if (index === this.#phase && now > this.#stepEnd) {
      this.#count(PHASE_GAPS, 1);
      this.#count(PHASE_GAP_US, now - this.#stepEnd);
    }
    this.#phase = index;
    this.#stepStart = now;
  }

  endStep(): void {
    this.#stepEnd = this.nowUs();
    this.#count(PHASE_STEPS, 1);
    this.#count(PHASE_STEP_US, this.#stepEnd - this.#stepStart);
  }

  /** A call that began at `startUs` has just ended; it moved so many bytes and did so many operations. */
  record(row: number, startUs: number, bytes: number, flops: number): void {
    this.#countKernel(row, this.nowUs() - startUs - this.#insideUs, bytes, flops);
    this.#count(PHASE_PROFILER_US, this.#insideUs + this.#aroundUs);
  }

  #countKernel(row: number, us: number, bytes: number, flops: number): void {
    const rows = this.#block.rows[this.#phase];
    if (rows === undefined) return;
    const at = this.#block.rowAt(row);
    rows[at + ROW_CALLS] = (rows[at + ROW_CALLS] ?? 0) + 1;
    rows[at + ROW_US] = (rows[at + ROW_US] ?? 0) + us;
    rows[at + ROW_BYTES] = (rows[at + ROW_BYTES] ?? 0) + bytes;
    rows[at + ROW_FLOPS] = (rows[at + ROW_FLOPS] ?? 0) + flops;
  }

  /** Calls of `make` that are told to `note`, in their order; and what it returns. */
  noting<Result>(make: () => Result): { readonly result: Result; readonly calls: readonly NotedCall[] } {
    const calls: NotedCall[] = [];
    this.#noted = calls;
    try {
      return { result: make(), calls };
    } finally {
      this.#noted = null;
    }
  }

  note(call: NotedCall): void {
    this.#noted?.push(call);
  }

  /** Whether calls are noted now. */
  get notes(): boolean {
    return this.#noted !== null;
  }

  /** Noted calls have been made again. `micros` has two elements a call: what it took, and how much of that was waiting. */
  countAgain(calls: readonly NotedCall[], micros: Float64Array): void {
    const start = this.nowUs();
    for (const [i, { row, moved }] of calls.entries()) {
      const [us, waitUs] = [micros[2 * i] ?? 0, micros[2 * i + 1] ?? 0];
      if (row === null) this.#countCollective(us, waitUs);
      else {
        const { bytes, flops } = moved();
        this.#countKernel(row, us, bytes, flops);
      }
    }
    this.#count(PHASE_PROFILER_US, this.nowUs() - start);
  }

  /** This rank comes to a collective; returns the time. */
  arrive(): number {
    const now = this.nowUs();
    this.#arrivals[arrivalAt(this.#worldSize, this.#collective, this.#rank)] = now;
    return now;
  }

  /**
   * The collective that this rank came to at `startUs` is done. All ranks had to come before it could be: what passed until
   * the last one did was waiting.
   */
  leave(startUs: number): void {
    const now = this.nowUs();
    let last = startUs;
    for (let rank = 0; rank < this.#worldSize; rank++) {
      last = Math.max(last, this.#arrivals[arrivalAt(this.#worldSize, this.#collective, rank)] ?? 0);
    }
    this.#collective++;
    // A rank that comes last and leaves before another has looked at its clock cannot have waited longer than it was there.
    this.#countCollective(now - startUs - this.#insideUs, Math.min(last, now) - startUs);
    this.#count(PHASE_PROFILER_US, this.#insideUs + this.#aroundUs);
  }

  #countCollective(us: number, waitUs: number): void {
    this.#count(PHASE_COLLECTIVES, 1);
    this.#count(PHASE_COLLECTIVE_US, us);
    this.#count(PHASE_WAIT_US, waitUs);
  }

  /**
   * Finds out what recording a call costs: `call` records one that does nothing, in `row`. Everything counted so far is
   * forgotten.
   */
  calibrate(row: number, call: () => void): void {
    const { rows } = this.#block;
    this.#insideUs = 0;
    this.#aroundUs = 0;
    const [inside, around]: [number[], number[]] = [[], []];
    const counted = (): number => rows[this.#phase]?.[this.#block.rowAt(row) + ROW_US] ?? 0;
    const memory = new Uint8Array(CALIBRATION_SWEEP_BYTES).fill(1);
    for (let i = 0; i < CALIBRATION_WARM_UP; i++) call();
    for (let i = 0; i < CALIBRATION_CALLS; i++) {
      sweep(memory);
      this.nowUs();
      const before = counted();
      const start = this.nowUs();
      call();
      const total = this.nowUs() - start;
      inside.push(counted() - before);
      around.push(total - (counted() - before));
    }
    // Of what is around, one look at the clock is ours.
    const clock = median(Array.from({ length: CALIBRATION_CALLS }, () => -this.nowUs() + this.nowUs()));
    this.#insideUs = median(inside);
    this.#aroundUs = Math.max(0, median(around) - clock);
    this.reset();
  }

  /** Forgets what was counted, and keeps names and what recording costs. */
  reset(): void {
    for (const counters of this.#block.counters) counters.fill(0);
    for (const rows of this.#block.rows) rows.fill(0);
  }

  #count(counter: number, amount: number): void {
    const counters = this.#block.counters[this.#phase];
    if (counters !== undefined) counters[counter] = (counters[counter] ?? 0) + amount;
  }
}

/** Reads all lines of some memory. */
function sweep(memory: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < memory.length; i += CACHE_LINE_BYTES) sum += memory[i] ?? 0;
  return sum;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

/**
 * `performance.now` counts from the start of its thread, `process.hrtime` is one clock for all of them, and both are read
 * from the same one: the smallest difference seen is the offset.
 */
function clockOffsetUs(): number {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 32; i++) {
    const before = performance.now() * 1000;
    least = Math.min(least, Number(process.hrtime.bigint()) / 1000 - before);
  }
  return least;
}
