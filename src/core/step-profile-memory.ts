/**
 * Where ranks count what the time of their steps goes to: doubles in shared memory, one block a rank, which only that rank
 * writes. Whoever reads does so between steps (rank/step-channel.ts orders the accesses).
 *
 *     arrivals  [ARRIVALS][worldSize], a line each: when a rank came to a collective, in microseconds of `nowUs`
 *     block     header | counters of every phase | [phases][MAX_ROWS][ROW_FIELDS] | names of rows
 */

/** What a step does: computes one token of every sequence in it, or more. Steps of the two are counted apart. */
export const PHASES = ["decode", "prefill"] as const;
export type Phase = (typeof PHASES)[number];

/** Different things a rank can count. */
export const MAX_ROWS = 96;
/** Longest name of one, in bytes; longer ones are cut. */
const NAME_BYTES = 64;

/** Doubles of a line. Lines written by different threads are never the same: adjacent-line prefetch makes it 128 bytes. */
const LINE = 16;
/** Collectives whose arrivals are remembered: no rank is more than one ahead of another. */
const ARRIVALS = 4;

/** Fields of a row. */
export const ROW_CALLS = 0;
export const ROW_US = 1;
export const ROW_BYTES = 2;
export const ROW_FLOPS = 3;
const ROW_FIELDS = 4;

/** Counters of a phase. */
export const PHASE_STEPS = 0;
export const PHASE_STEP_US = 1;
export const PHASE_GAPS = 2;
export const PHASE_GAP_US = 3;
export const PHASE_COLLECTIVES = 4;
export const PHASE_COLLECTIVE_US = 5;
export const PHASE_WAIT_US = 6;
/** What measuring cost; it is in no other counter but that of steps. */
export const PHASE_PROFILER_US = 7;

/** Header: rows that have a name. */
export const HEADER_ROWS = 0;

const COUNTERS = LINE;
const ROWS = COUNTERS + PHASES.length * LINE;
const NAMES = ROWS + PHASES.length * MAX_ROWS * ROW_FIELDS;
const BLOCK = NAMES + (MAX_ROWS * NAME_BYTES) / Float64Array.BYTES_PER_ELEMENT;

/** Plain data: it crosses threads. */
export interface StepProfileHandle {
  readonly buffer: SharedArrayBuffer;
  readonly worldSize: number;
}

/** Memory of a group of ranks, with nothing counted. */
export function createStepProfile(worldSize: number): StepProfileHandle {
  const doubles = worldSize * (ARRIVALS * LINE + BLOCK);
  return { buffer: new SharedArrayBuffer(doubles * Float64Array.BYTES_PER_ELEMENT), worldSize };
}

/** Place of the time at which `rank` came to the collective with this number, in doubles of the whole buffer. */
export function arrivalAt(worldSize: number, collective: number, rank: number): number {
  return ((collective % ARRIVALS) * worldSize + rank) * LINE;
}

/** The block of one rank. */
export class ProfileBlock {
  readonly header: Float64Array;
  /** Counters of each phase. */
  readonly counters: readonly Float64Array[];
  /** `[MAX_ROWS][ROW_FIELDS]` of each phase. */
  readonly rows: readonly Float64Array[];
  readonly #names: Uint8Array;

  constructor({ buffer, worldSize }: StepProfileHandle, rank: number) {
    const start = worldSize * ARRIVALS * LINE + rank * BLOCK;
    const part = (first: number, length: number): Float64Array =>
      new Float64Array(buffer, (start + first) * Float64Array.BYTES_PER_ELEMENT, length);
    this.header = part(0, LINE);
    this.counters = PHASES.map((_, phase) => part(COUNTERS + phase * LINE, LINE));
    const width = MAX_ROWS * ROW_FIELDS;
    this.rows = PHASES.map((_, phase) => part(ROWS + phase * width, width));
    this.#names = new Uint8Array(buffer, (start + NAMES) * Float64Array.BYTES_PER_ELEMENT, MAX_ROWS * NAME_BYTES);
  }

  /** Index of the first field of a row within `rows`. */
  rowAt(row: number): number {
    return row * ROW_FIELDS;
  }

  /** Names the next row and returns its number; once all are named, the last one is everybody's. */
  addRow(name: string): number {
    const row = Math.min(this.header[HEADER_ROWS] ?? 0, MAX_ROWS - 1);
    // TextEncoder does not write to shared memory.
    const bytes = new TextEncoder().encode(name).subarray(0, NAME_BYTES - 1);
    this.#names[row * NAME_BYTES] = bytes.length;
    this.#names.set(bytes, row * NAME_BYTES + 1);
    this.header[HEADER_ROWS] = row + 1;
    return row;
  }

  nameOf(row: number): string {
    const start = row * NAME_BYTES + 1;
    return new TextDecoder().decode(this.#names.slice(start, start + (this.#names[start - 1] ?? 0)));
  }
}
