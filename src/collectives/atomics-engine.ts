/**
 * The TypeScript twin of native/collectives.cc: the same protocol on Atomics, the same bits. It serves where the addon is
 * missing, and the tests hold the two against each other. The header of native/collectives.h says why one wait a phase
 * is enough and two halves of every slot suffice.
 */
import type { AllGather, AllReduce, Broadcast, CollectiveRequest } from "./collective.js";
import {
  addElements,
  addWidened,
  COLLECTIVE_PAYLOADS,
  copyElements,
  type PayloadView,
  packColumns,
  payloadOf,
  roundElements,
  unifyNaNs,
  unpackColumns,
  widenElements,
} from "./payload.js";
import {
  type CollectiveRegion,
  GATE,
  HEADER,
  RANK_LINE,
  rankLine,
  requestAt,
  STATUS,
  slotOf,
  wordsOf,
} from "./region.js";
import { sameRequest, writeRequest } from "./request.js";

/** Elements in 64 bytes: the parts of a reduce-scatter begin on whole lines, as in the addon. */
const LINE_ELEMENTS = 16;
/** A parked thread looks around at least this often. */
const PARK_SLICE_MS = 20;
const SPINS_BETWEEN_LOOKS = 64;

/** A slot's elements: of four bytes, or bf16. */
interface SlotView extends PayloadView {
  readonly bf16: Uint16Array;
}

type Halves = readonly [SlotView, SlotView];

function viewOfSlot(region: CollectiveRegion, rank: number, half: 0 | 1): SlotView {
  const bits = slotOf(region, rank, half);
  const { buffer, byteOffset, length } = bits;
  return {
    bits,
    f32: new Float32Array(buffer, byteOffset, length),
    bf16: new Uint16Array(buffer, byteOffset, 2 * length),
  };
}

/** First element of a rank's part of `count` elements; it ends where the next rank's begins. */
function partBegin(count: number, rank: number, ranks: number): number {
  const lines = Math.ceil(count / LINE_ELEMENTS);
  return Math.min(count, Math.floor((lines * rank) / ranks) * LINE_ELEMENTS);
}

export class AtomicsEngine {
  readonly #rank: number;
  readonly #worldSize: number;
  readonly #words: Int32Array;
  readonly #arrivedAt: readonly number[];
  readonly #slots: readonly Halves[];
  readonly #mine: Halves;
  readonly #slotElements: number;
  readonly #oneShotElements: number;
  readonly #rounds: boolean;

  constructor(region: CollectiveRegion, rank: number) {
    this.#rank = rank;
    this.#worldSize = region.worldSize;
    this.#words = wordsOf(region);
    const ranks = Array.from({ length: region.worldSize }, (_, r) => r);
    this.#arrivedAt = ranks.map((r) => rankLine(r) + RANK_LINE.arrived);
    this.#slots = ranks.map((r): Halves => [viewOfSlot(region, r, 0), viewOfSlot(region, r, 1)]);
    this.#mine = [viewOfSlot(region, rank, 0), viewOfSlot(region, rank, 1)];
    this.#slotElements = region.slotBytes / 4;
    this.#rounds = COLLECTIVE_PAYLOADS[this.#words[HEADER.payload] ?? 0] === "bf16" && region.worldSize > 1;
    this.#oneShotElements = Math.floor((this.#words[HEADER.oneShotBytes] ?? 0) / 4);
  }

  /** Carries out a checked request. Returns a `STATUS`; any but `done` is final for the region. */
  run(request: CollectiveRequest): number {
    const poison = Atomics.load(this.#words, HEADER.poison);
    if (poison !== 0) return poison & 0xff;
    switch (request.kind) {
      case "allReduce":
        return this.#allReduce(request);
      case "allGather":
        return this.#allGather(request);
      case "broadcast":
        return this.#broadcast(request);
      case "barrier":
        return this.#meet(this.#nextPhase(), request);
    }
  }

  #allReduce(request: AllReduce): number {
    const data = payloadOf(request.data);
    for (let done = 0; done === 0 || done < request.count; done += this.#slotElements) {
      const chunk = Math.min(request.count - done, this.#slotElements);
      const status =
        chunk <= this.#oneShotElements
          ? this.#reduceOneShot(request, data, done, chunk)
          : this.#reduceScattered(request, data, done, chunk);
      if (status !== STATUS.done) return status;
    }
    return STATUS.done;
  }

  #reduceOneShot(request: AllReduce, data: PayloadView, first: number, count: number): number {
    const phase = this.#nextPhase();
    this.#write(phase, data, first, count);
    const status = this.#meet(phase, request);
    if (status === STATUS.done && this.#worldSize > 1) this.#sum(data, first, phase, 0, count);
    return status;
  }

  #reduceScattered(request: AllReduce, data: PayloadView, first: number, count: number): number {
    const phase = this.#nextPhase();
    this.#write(phase, data, first, count);
    let status = this.#meet(phase, request);
    if (status !== STATUS.done || this.#worldSize === 1) return status;

    const begin = partBegin(count, this.#rank, this.#worldSize);
    const end = partBegin(count, this.#rank + 1, this.#worldSize);
    this.#sum(data, first, phase, begin, end - begin);
    copyElements(this.#mine[half(phase + 1)].bits, begin, data.bits, first + begin, end - begin);
    status = this.#meet(phase + 1, request);
    if (status !== STATUS.done) return status;
    let r = 0;
    for (const slot of this.#slots) {
      const from = partBegin(count, r, this.#worldSize);
      const to = partBegin(count, r + 1, this.#worldSize);
      copyElements(data.bits, first + from, slot[half(phase + 1)].bits, from, to - from);
      r++;
    }
    return status;
  }

  /** Puts elements into this rank's slot, as they travel. */
  #write(phase: number, data: PayloadView, first: number, count: number): void {
    const slot = this.#mine[half(phase)];
    if (this.#rounds) roundElements(slot.bf16, 0, data.bits, first, count);
    else copyElements(slot.bits, 0, data.bits, first, count);
  }

  /** Sums elements `[from, from + count)` of all slots into those of a chunk that begins at `first` of the data. */
  #sum(data: PayloadView, first: number, phase: number, from: number, count: number): void {
    let r = 0;
    for (const slot of this.#slots) {
      const source = slot[half(phase)];
      if (this.#rounds && r === 0) widenElements(data.bits, first + from, source.bf16, from, count);
      else if (this.#rounds) addWidened(data.f32, first + from, source.bf16, from, count);
      else if (r === 0) copyElements(data.bits, first + from, source.bits, from, count);
      else addElements(data.f32, first + from, source.f32, from, count);
      r++;
    }
    unifyNaNs(data, first + from, count);
  }

  #allGather(request: AllGather): number {
    const { rows, widths } = request;
    const data = payloadOf(request.data);
    const out = payloadOf(request.out);
    const ownWidth = widths[this.#rank] ?? 0;
    let widest = 0;
    for (const width of widths) widest = Math.max(widest, width);
    for (let done = 0; done === 0 || done < rows * widest; done += this.#slotElements) {
      const phase = this.#nextPhase();
      const slot = this.#mine[half(phase)].bits;
      packColumns(slot, data.bits, request.data.columns, ownWidth, done, this.#share(rows * ownWidth, done));
      const status = this.#meet(phase, request);
      if (status !== STATUS.done) return status;
      let offset = 0;
      let r = 0;
      for (const width of widths) {
        const source = this.#slots[r]?.[half(phase)].bits ?? slot;
        const share = this.#share(rows * width, done);
        unpackColumns(out.bits, request.out.columns, offset, source, width, done, share);
        offset += width;
        r++;
      }
    }
    return STATUS.done;
  }

  /** How many of `total` elements travel in the round that begins at element `done`. */
  #share(total: number, done: number): number {
    return Math.max(0, Math.min(total - done, this.#slotElements));
  }

  #broadcast(request: Broadcast): number {
    const { count, root } = request;
    const { bits } = payloadOf(request.data);
    for (let done = 0; done === 0 || done < count; done += this.#slotElements) {
      const phase = this.#nextPhase();
      const chunk = this.#share(count, done);
      const mine = this.#mine[half(phase)].bits;
      if (this.#rank === root) copyElements(mine, 0, bits, done, chunk);
      const status = this.#meet(phase, request);
      if (status !== STATUS.done) return status;
      const source = this.#slots[root]?.[half(phase)].bits ?? mine;
      if (this.#rank !== root) copyElements(bits, done, source, 0, chunk);
    }
    return STATUS.done;
  }

  #nextPhase(): number {
    return (Atomics.load(this.#words, rankLine(this.#rank) + RANK_LINE.arrived) + 1) | 0;
  }

  /** Publishes a request, arrives, waits for all, compares. */
  #meet(phase: number, request: CollectiveRequest): number {
    const words = this.#words;
    const own = requestAt(this.#rank, phase);
    writeRequest(words, own, request, this.#rank);
    Atomics.store(words, rankLine(this.#rank) + RANK_LINE.arrived, phase);
    const status = this.#waitForAll(phase);
    if (status !== STATUS.done) return status;
    for (let r = 0; r < this.#worldSize; r++) {
      if (!sameRequest(words, own, requestAt(r, phase))) return poisonRegion(words, STATUS.mismatch, this.#rank);
    }
    return STATUS.done;
  }

  /** The first rank from `next` on that has not arrived at a phase; worldSize when all have. */
  #firstMissing(next: number, phase: number): number {
    let r = next;
    for (; r < this.#worldSize; r++) {
      const arrived = Atomics.load(this.#words, this.#arrivedAt[r] ?? 0);
      if (((arrived - phase) | 0) < 0) break;
    }
    return r;
  }

  #waitForAll(phase: number): number {
    const next = this.#firstMissing(0, phase);
    if (next < this.#worldSize) {
      const status = this.#waitSlowly(phase, next);
      if (status !== STATUS.done) return status;
    }
    // No wake-up is lost: all accesses to flags and to `parked` are sequentially consistent, so either the last rank
    // to arrive sees who announced itself here, or that one saw it arrive. See wake_parked in native/collectives.cc.
    const words = this.#words;
    if (Atomics.load(words, GATE.parked) !== 0 && Atomics.exchange(words, GATE.parked, 0) !== 0) openGate(words);
    return STATUS.done;
  }

  /** Spins for as long as that has paid lately, then parks, until the deadline. See wait_slowly in the addon. */
  #waitSlowly(phase: number, firstMissing: number): number {
    const words = this.#words;
    const line = rankLine(this.#rank);
    const start = performance.now();
    const deadline = start + (words[line + RANK_LINE.timeoutMs] ?? 0);
    const budget = words[line + RANK_LINE.spinBudget] ?? 0;
    const spinEnd = start + budget / 1000;
    let next = firstMissing;
    let now = start;
    for (;;) {
      const parking = now >= spinEnd;
      let gate = 0;
      if (parking) {
        gate = Atomics.load(words, GATE.gate);
        Atomics.store(words, GATE.parked, 1);
      } else {
        for (let i = 0; i < SPINS_BETWEEN_LOOKS; i++) {
          next = this.#firstMissing(next, phase);
          if (next < this.#worldSize) continue;
          words[line + RANK_LINE.spinBudget] = Math.min(words[line + RANK_LINE.spinMicros] ?? 0, 2 * budget);
          return STATUS.done;
        }
        words[line + RANK_LINE.spinBudget] = Math.max(1, budget >> 1);
      }
      // Poison before flags: whoever sees a mismatch reported has then also seen all arrive, and finds it itself.
      const poison = Atomics.load(words, HEADER.poison);
      next = this.#firstMissing(next, phase);
      if (next === this.#worldSize) return STATUS.done;
      if (poison !== 0) return poison & 0xff;
      now = performance.now();
      if (now >= deadline) return poisonRegion(words, STATUS.timedOut, this.#rank);
      if (parking) {
        Atomics.wait(words, GATE.gate, gate, Math.min(deadline - now, PARK_SLICE_MS));
        now = performance.now();
      }
    }
  }
}

/** Which half of a slot belongs to a phase; also right for negative numbers, which phases become after 2^31. */
function half(phase: number): 0 | 1 {
  return (phase & 1) === 0 ? 0 : 1;
}

function openGate(words: Int32Array): void {
  Atomics.add(words, GATE.gate, 1);
  Atomics.notify(words, GATE.gate);
}

/** Poisons a region unless it is already, wakes who parks on Atomics, and returns the status that stands. */
export function poisonRegion(words: Int32Array, status: number, rank: number): number {
  const wanted = status | ((rank + 1) << 8);
  const standing = Atomics.compareExchange(words, HEADER.poison, 0, wanted);
  openGate(words);
  return (standing === 0 ? wanted : standing) & 0xff;
}
