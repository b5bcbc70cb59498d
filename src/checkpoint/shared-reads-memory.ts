/**
 * SharedReads between threads. A table in shared memory says of each item whether it is being made or is there, and where;
 * a short lock guards it. Nobody waits while holding the lock, or while making something, so ranks cannot wait for each
 * other in a circle; every wait is bounded, and after it a rank makes the item for itself.
 *
 *     nobody has it -> FILLING (by who came first) -> READY -> gone, when all takers have released it
 *                              \ it failed -> gone, and whoever waited begins anew
 */
import { createHash } from "node:crypto";
import {
  LEAST_SHARED_BYTES,
  privatePiece,
  type SharedItem,
  type SharedPiece,
  type SharedReads,
  type WaitObserver,
} from "./shared-reads.js";

/** What ranks need to share reads. Plain data: it crosses threads. */
export interface SharedReadsHandle {
  readonly table: SharedArrayBuffer;
  /** Grows as items need it. */
  readonly data: SharedArrayBuffer;
}

/** The most that may be kept at a time; V8 makes no larger buffer. */
const MAX_DATA_BYTES = 2 ** 32;
/** Items lie on lines of their own. */
const UNIT_BYTES = 64;
/** The data grows by so much at least. */
const GROWTH_BYTES = 1 << 20;

/** Items that may be there or in the making at a time. */
const ENTRIES = 16_384;
const BUCKETS = 16_384;
/** Stretches of freed memory that are remembered. */
const GAPS = 4096;

// Words of the table.
const LOCK = 0;
/** Units of the data that have been handed out, used or freed. */
const USED_UNITS = 1;
/** Entries that have been used, and 1 + the first of those that are free again. */
const USED_ENTRIES = 2;
const FREE_ENTRY = 3;
const GAP_COUNT = 4;
const FIRST_BUCKET = 32;
const FIRST_GAP = FIRST_BUCKET + BUCKETS;
const FIRST_ENTRY = FIRST_GAP + 2 * GAPS;

// Words of an entry.
const STATE = 0;
/** 1 + the next entry of the bucket, or of those that are free. */
const NEXT = 1;
const DIGEST = 2;
const DIGEST_WORDS = 4;
const OFFSET = 6;
const UNITS = 7;
/** Ranks that have not released it yet. */
const TAKERS = 8;
/** Ranks that use it now, the one that makes it included. */
const USERS = 9;
const ENTRY_WORDS = 16;

// States. An entry that is gone has another word than those that wait for it saw.
const FREE = 0;
const FILLING = 1;
const READY = 2;

const LOCK_SLICE_MS = 1;
const LOCK_TRIES = 1000;
const WAIT_SLICE_MS = 1000;

/** How long a rank waits for an item that another one makes, unless told otherwise. */
const WAIT_MS = 10_000;

/** Reserves addresses, and takes memory as it is needed. Null where the system has no addresses to spare. */
export function createSharedReads(): SharedReadsHandle | null {
  try {
    return {
      table: new SharedArrayBuffer((FIRST_ENTRY + ENTRIES * ENTRY_WORDS) * Int32Array.BYTES_PER_ELEMENT),
      data: new SharedArrayBuffer(0, { maxByteLength: MAX_DATA_BYTES }),
    };
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

export interface SharedReadsOptions {
  readonly observer?: WaitObserver;
  readonly waitMs?: number;
  readonly leastBytes?: number;
}

/** What became of an item that was asked for. */
type Claim =
  | { readonly kind: "mine" | "ready" | "filling"; readonly entry: number }
  /** There is no room for it. */
  | { readonly kind: "none" };

const NONE: Claim = { kind: "none" };

/** One rank's end. */
export class SharedReadsMemory implements SharedReads {
  readonly leastBytes: number;
  #words: Int32Array;
  #data: SharedArrayBuffer;
  #closed = false;
  readonly #options: SharedReadsOptions;

  constructor({ table, data }: SharedReadsHandle, options: SharedReadsOptions = {}) {
    this.#words = new Int32Array(table);
    this.#data = data;
    this.#options = options;
    this.leastBytes = options.leastBytes ?? LEAST_SHARED_BYTES;
  }

  /** Lets go of the memory, for the rank has loaded: what it acquires from now on is its own. */
  close(): void {
    this.#closed = true;
    this.#words = new Int32Array(0);
    this.#data = new SharedArrayBuffer(0);
  }

  acquire(items: readonly SharedItem[], takers: number): readonly SharedPiece[] {
    if (this.#closed) return items.map(privatePiece);
    const pieces = new Map<number, SharedPiece>();
    try {
      for (const patient of [false, true]) {
        for (const [i, item] of items.entries()) {
          if (pieces.has(i)) continue;
          const piece = this.#take(item, takers, patient);
          if (piece !== null) pieces.set(i, piece);
        }
      }
    } catch (error) {
      for (const piece of pieces.values()) piece.release();
      throw error;
    }
    return items.flatMap((_, i) => pieces.get(i) ?? []);
  }

  /** Null for what another rank is making, unless the caller is patient. */
  #take(item: SharedItem, takers: number, patient: boolean): SharedPiece | null {
    const digest = digestOf(item);
    const deadline = performance.now() + (this.#options.waitMs ?? WAIT_MS);
    for (;;) {
      const claim = this.#claim(digest, item.sizeBytes, takers);
      switch (claim.kind) {
        case "none":
          return privatePiece(item);
        case "mine":
          return this.#fill(claim.entry, item);
        case "ready":
          return this.#piece(claim.entry, item.sizeBytes);
        case "filling":
          if (!patient) return null;
          if (!this.#wait(claim.entry, deadline)) return privatePiece(item);
      }
    }
  }

  #fill(entry: number, item: SharedItem): SharedPiece {
    const piece = this.#piece(entry, item.sizeBytes);
    try {
      item.fill(piece.bytes);
    } catch (error) {
      this.#settle(entry, FREE);
      throw error;
    }
    this.#settle(entry, READY);
    return piece;
  }

  /** Of an entry that the caller is a user of. */
  #piece(entry: number, sizeBytes: number): SharedPiece {
    const bytes = new Uint8Array(this.#data, this.#at(entry, OFFSET) * UNIT_BYTES, sizeBytes);
    return { bytes, release: () => this.#release(entry) };
  }

  /** Waits until an entry is no longer being filled, or looks as if; false when the time is over. */
  #wait(entry: number, deadline: number): boolean {
    const leftMs = deadline - performance.now();
    if (leftMs <= 0) return false;
    this.#options.observer?.enter("wait");
    Atomics.wait(this.#words, wordOf(entry, STATE), FILLING, Math.min(leftMs, WAIT_SLICE_MS));
    this.#options.observer?.leave();
    return true;
  }

  /** Finds an item, or makes an entry for it, of which the caller is a user then, unless another rank is filling it. */
  #claim(digest: Int32Array, sizeBytes: number, takers: number): Claim {
    return this.#locked((): Claim => {
      const known = this.#find(digest);
      if (known === null) return this.#add(digest, sizeBytes, takers);
      if (this.#at(known, STATE) === FILLING) return { kind: "filling", entry: known };
      this.#change(known, USERS, 1);
      return { kind: "ready", entry: known };
    }, NONE);
  }

  #add(digest: Int32Array, sizeBytes: number, takers: number): Claim {
    const units = Math.max(1, Math.ceil(sizeBytes / UNIT_BYTES));
    const entry = this.#takeEntry();
    if (entry === null) return NONE;
    const offset = this.#reserve(units);
    if (offset === null) {
      this.#freeEntry(entry);
      return NONE;
    }
    const words = this.#words;
    const bucket = bucketOf(digest);
    words.set(digest, wordOf(entry, DIGEST));
    words[wordOf(entry, OFFSET)] = offset;
    words[wordOf(entry, UNITS)] = units;
    words[wordOf(entry, TAKERS)] = takers;
    words[wordOf(entry, USERS)] = 1;
    words[wordOf(entry, NEXT)] = words[bucket] ?? 0;
    words[bucket] = 1 + entry;
    Atomics.store(words, wordOf(entry, STATE), FILLING);
    return { kind: "mine", entry };
  }

  /** What was being filled is ready, or, with FREE, was not to be had. */
  #settle(entry: number, state: typeof READY | typeof FREE): void {
    this.#locked(() => {
      if (state === FREE) this.#drop(entry);
      else Atomics.store(this.#words, wordOf(entry, STATE), READY);
    }, undefined);
    Atomics.notify(this.#words, wordOf(entry, STATE));
  }

  #release(entry: number): void {
    if (this.#closed) return;
    this.#locked(() => {
      this.#change(entry, USERS, -1);
      this.#change(entry, TAKERS, -1);
      if (this.#at(entry, USERS) === 0 && this.#at(entry, TAKERS) <= 0) this.#drop(entry);
    }, undefined);
  }

  // Below: with the lock held.

  #find(digest: Int32Array): number | null {
    for (let next = this.#words[bucketOf(digest)] ?? 0; next !== 0; next = this.#at(next - 1, NEXT)) {
      if (digest.every((word, i) => this.#at(next - 1, DIGEST + i) === word)) return next - 1;
    }
    return null;
  }

  #drop(entry: number): void {
    const words = this.#words;
    const digest = words.slice(wordOf(entry, DIGEST), wordOf(entry, DIGEST) + DIGEST_WORDS);
    let link = bucketOf(digest);
    while (words[link] !== 1 + entry) link = wordOf((words[link] ?? 0) - 1, NEXT);
    words[link] = this.#at(entry, NEXT);
    this.#free(this.#at(entry, OFFSET), this.#at(entry, UNITS));
    this.#freeEntry(entry);
  }

  #takeEntry(): number | null {
    const words = this.#words;
    const free = words[FREE_ENTRY] ?? 0;
    if (free !== 0) {
      words[FREE_ENTRY] = this.#at(free - 1, NEXT);
      return free - 1;
    }
    const used = words[USED_ENTRIES] ?? 0;
    if (used === ENTRIES) return null;
    words[USED_ENTRIES] = used + 1;
    return used;
  }

  #freeEntry(entry: number): void {
    const words = this.#words;
    Atomics.store(words, wordOf(entry, STATE), FREE);
    words[wordOf(entry, NEXT)] = words[FREE_ENTRY] ?? 0;
    words[FREE_ENTRY] = 1 + entry;
  }

  /** The first unit of so many, which lie in a gap or at the end; null where there is no room. */
  #reserve(units: number): number | null {
    const words = this.#words;
    const gaps = words[GAP_COUNT] ?? 0;
    for (let gap = 0; gap < gaps; gap++) {
      const [at, length] = [FIRST_GAP + 2 * gap, FIRST_GAP + 2 * gap + 1];
      const [offset, free] = [words[at] ?? 0, words[length] ?? 0];
      if (free < units) continue;
      words[at] = offset + units;
      words[length] = free - units;
      if (free === units) this.#removeGap(gap);
      return offset;
    }
    const offset = words[USED_UNITS] ?? 0;
    if (!this.#grow((offset + units) * UNIT_BYTES)) return null;
    words[USED_UNITS] = offset + units;
    return offset;
  }

  #grow(endBytes: number): boolean {
    const { byteLength, maxByteLength } = this.#data;
    if (endBytes <= byteLength) return true;
    if (endBytes > maxByteLength) return false;
    try {
      this.#data.grow(Math.min(maxByteLength, Math.max(endBytes, byteLength + GROWTH_BYTES)));
      return true;
    } catch (error) {
      if (error instanceof RangeError) return false;
      throw error;
    }
  }

  /** Remembers a gap, as one with those beside it. Where too many are remembered already it is lost. */
  #free(offset: number, units: number): void {
    const words = this.#words;
    let [start, end] = [offset, offset + units];
    for (let gap = (words[GAP_COUNT] ?? 0) - 1; gap >= 0; gap--) {
      const first = words[FIRST_GAP + 2 * gap] ?? 0;
      const last = first + (words[FIRST_GAP + 2 * gap + 1] ?? 0);
      if (last !== start && first !== end) continue;
      start = Math.min(start, first);
      end = Math.max(end, last);
      this.#removeGap(gap);
    }
    const gaps = words[GAP_COUNT] ?? 0;
    if (gaps === GAPS) return;
    words[FIRST_GAP + 2 * gaps] = start;
    words[FIRST_GAP + 2 * gaps + 1] = end - start;
    words[GAP_COUNT] = gaps + 1;
  }

  #removeGap(gap: number): void {
    const words = this.#words;
    const last = (words[GAP_COUNT] ?? 0) - 1;
    words.copyWithin(FIRST_GAP + 2 * gap, FIRST_GAP + 2 * last, FIRST_GAP + 2 * last + 2);
    words[GAP_COUNT] = last;
  }

  #at(entry: number, word: number): number {
    return this.#words[wordOf(entry, word)] ?? 0;
  }

  #change(entry: number, word: number, by: number): void {
    this.#words[wordOf(entry, word)] = this.#at(entry, word) + by;
  }

  /** What `use` returns, which nobody else runs meanwhile; `otherwise` where a rank seems to have died with the lock. */
  #locked<Result>(use: () => Result, otherwise: Result): Result {
    const words = this.#words;
    for (let tries = 0; Atomics.compareExchange(words, LOCK, 0, 1) !== 0; tries++) {
      if (tries === LOCK_TRIES) return otherwise;
      Atomics.wait(words, LOCK, 1, LOCK_SLICE_MS);
    }
    try {
      return use();
    } finally {
      Atomics.store(words, LOCK, 0);
      Atomics.notify(words, LOCK, 1);
    }
  }
}

const wordOf = (entry: number, word: number): number => FIRST_ENTRY + entry * ENTRY_WORDS + word;

/** Word of the table that holds 1 + the first entry with such a digest. */
const bucketOf = (digest: Int32Array): number => FIRST_BUCKET + ((digest[0] ?? 0) & (BUCKETS - 1));

/** 128 bits that stand for the key: no two keys of one model share them. */
function digestOf({ key, sizeBytes }: SharedItem): Int32Array {
  const hash = createHash("sha256").update(`${sizeBytes} ${key}`).digest();
  return Int32Array.from({ length: DIGEST_WORDS }, (_, i) => hash.readInt32LE(4 * i));
}
