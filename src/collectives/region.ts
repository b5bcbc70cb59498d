/**
 * The memory that the ranks of a group share for their collectives: its layout and its making. Nothing here waits or
 * moves payload; that is shared-memory.ts and its two engines, the addon (native/collectives.cc repeats the constants
 * below) and the TypeScript twin (atomics-engine.ts). Both speak the same protocol over the same layout, but a parked
 * thread of one is not woken by the other: all ranks of a region use the same engine. (Mixed, they would still finish,
 * at the pace of the parking slices.)
 *
 * Layout, in lines of 128 bytes: a header, written before the region is handed out (but for its poison word, written
 * once); a gate line, for parking; one line a rank; then the slots, two a rank. Everything a rank writes in one line
 * and another reads is in the first 64 bytes of it, so no two ranks write the same pair of neighbouring cache lines
 * even where the region itself is aligned to 64 only.
 */
import { Arena, type ArenaHandle } from "../core/arena.js";
import { InternalError } from "../core/errors.js";
import { MAX_WORLD_SIZE } from "../core/rank.js";
import { COLLECTIVE_PAYLOADS, type CollectivePayload } from "./payload.js";

/** Changes with the layout and the protocol. */
export const LAYOUT_VERSION = 0x53480003;

export const LINE_BYTES = 128;
export const LINE_WORDS = LINE_BYTES / 4;

/** Header line, in words from the start of the region. */
export const HEADER = {
  version: 0,
  worldSize: 1,
  slotBytes: 2,
  /** So many bytes of f32 are summed one-shot, more of them by reduce-scatter and all-gather. */
  oneShotBytes: 3,
  /** 0 while the region is sound, else `Status | (rank + 1) << 8` of whoever gave it up; rank + 1 = 0: no rank. */
  poison: 4,
  /** Index in `COLLECTIVE_PAYLOADS`. */
  payload: 5,
} as const;

/** Gate line: threads park on `gate`, after they set `parked`. Whoever finds all arrived clears it and moves the gate. */
export const GATE = { gate: LINE_WORDS, parked: LINE_WORDS + 1 } as const;

/** A rank's line, in words from its start. */
export const RANK_LINE = {
  /** The rank's last phase, which others wait for; counts up and wraps around. */
  arrived: 0,
  /** What it asked for, `REQUEST_WORDS` words for even phases, then as many for odd ones. */
  request: 1,
  /** After a mismatch: 1 + the bytes of a name that the rank left in its first slot (call-site.ts); 0 before. */
  siteBytes: 15,
  // Of the rank itself, on a cache line that no other rank reads.
  timeoutMs: 16,
  spinMicros: 17,
  yieldMicros: 18,
  /** How long it spins at present: at most spinMicros, less after spinning in vain. */
  spinBudget: 19,
} as const;

export const REQUEST_WORDS = 5;

/** Keeps equal places of different slots out of the same cache sets. */
const SLOT_PADDING_BYTES = 3 * LINE_BYTES;

/** Outcome of a collective, and the low byte of the poison word; `givenUp`, which that never is: it was set before. */
export const STATUS = { done: 0, timedOut: 1, aborted: 2, mismatch: 3, givenUp: 4 } as const;

export const DEFAULT_SLOT_BYTES = 256 * 1024;
const MAX_SLOT_BYTES = 64 * 1024 * 1024;

/** Plain data that crosses threads: what a rank needs to attach. Made once, by the coordinator. */
export interface CollectiveRegion {
  readonly worldSize: number;
  readonly slotBytes: number;
  readonly memory: ArenaHandle;
}

export interface RegionOptions {
  /** 1 .. MAX_WORLD_SIZE */
  readonly worldSize: number;
  /** Payload bytes that travel in one go; a multiple of 128. Larger payloads travel in several. */
  readonly slotBytes?: number;
  /** Overrides the size up to which every rank sums all slots itself. Results do not depend on it. */
  readonly oneShotBytes?: number;
  /** What all-reduces carry; f32 by default. */
  readonly payload?: CollectivePayload;
}

/**
 * Reserves and formats a region. Throws ShardloomError `OUT_OF_MEMORY` when the system refuses the memory.
 */
export function createRegion(options: RegionOptions): CollectiveRegion {
  const { worldSize, slotBytes = DEFAULT_SLOT_BYTES, oneShotBytes = defaultOneShotBytes(worldSize) } = options;
  const { payload = "f32" } = options;
  checkExtents(worldSize, slotBytes);
  const memory = Arena.create("collectives", slotsOffset(worldSize) + 2 * worldSize * slotStride(slotBytes)).handle;
  const region = { worldSize, slotBytes, memory };
  const words = wordsOf(region);
  words[HEADER.worldSize] = worldSize;
  words[HEADER.slotBytes] = slotBytes;
  words[HEADER.oneShotBytes] = oneShotBytes;
  words[HEADER.payload] = COLLECTIVE_PAYLOADS.indexOf(payload);
  words[HEADER.version] = LAYOUT_VERSION;
  return region;
}

/** Checks that a received region is one of this version. Throws InternalError: it was made by other code of ours. */
export function checkRegion(region: CollectiveRegion): void {
  checkExtents(region.worldSize, region.slotBytes);
  const expected = slotsOffset(region.worldSize) + 2 * region.worldSize * slotStride(region.slotBytes);
  const words = wordsOf(region);
  if (
    region.memory.capacity !== expected ||
    words[HEADER.version] !== LAYOUT_VERSION ||
    words[HEADER.worldSize] !== region.worldSize ||
    words[HEADER.slotBytes] !== region.slotBytes
  ) {
    throw new InternalError(
      `expected a region of collectives for ${region.worldSize} ranks in ${expected} bytes but received ` +
        `${region.memory.capacity} bytes, layout ${words[HEADER.version]}, ${words[HEADER.worldSize]} ranks`,
    );
  }
}

/** All words of a region. */
export function wordsOf(region: CollectiveRegion): Int32Array {
  return new Int32Array(region.memory.buffer, region.memory.base, region.memory.capacity / 4);
}

/** First word of a rank's line. */
export function rankLine(rank: number): number {
  return (2 + rank) * LINE_WORDS;
}

/** First word of the request that a rank published for a phase. */
export function requestAt(rank: number, phase: number): number {
  return rankLine(rank) + RANK_LINE.request + (phase & 1) * REQUEST_WORDS;
}

/** The elements, as bits, of the slot that a rank fills in even (half 0) or odd (half 1) phases. */
export function slotOf(region: CollectiveRegion, rank: number, half: 0 | 1): Int32Array {
  const offset = slotsOffset(region.worldSize) + (2 * rank + half) * slotStride(region.slotBytes);
  return new Int32Array(region.memory.buffer, region.memory.base + offset, region.slotBytes / 4);
}

function slotsOffset(worldSize: number): number {
  return (2 + worldSize) * LINE_BYTES;
}

function slotStride(slotBytes: number): number {
  return slotBytes + SLOT_PADDING_BYTES;
}

/**
 * One-shot costs one wait and moves worldSize - 1 payloads to each rank; scattered costs two waits and moves
 * 2 (worldSize - 1) / worldSize payloads. The two meet where the payloads saved take as long as a wait, which measures
 * as long as moving about 7 KB. Two ranks save nothing, but gain from summing in smaller pieces above 64 KiB.
 */
export function defaultOneShotBytes(worldSize: number): number {
  if (worldSize <= 2) return 64 * 1024;
  return Math.round((7 * 1024 * worldSize) / ((worldSize - 1) * (worldSize - 2)));
}

function checkExtents(worldSize: number, slotBytes: number): void {
  const sound =
    Number.isInteger(worldSize) &&
    worldSize >= 1 &&
    worldSize <= MAX_WORLD_SIZE &&
    Number.isInteger(slotBytes) &&
    slotBytes > 0 &&
    slotBytes <= MAX_SLOT_BYTES &&
    slotBytes % LINE_BYTES === 0;
  if (!sound) {
    throw new InternalError(
      `expected 1 to ${MAX_WORLD_SIZE} ranks and slots of a multiple of ${LINE_BYTES} bytes up to ${MAX_SLOT_BYTES} ` +
        `but received ${worldSize} ranks and ${slotBytes} bytes`,
    );
  }
}
