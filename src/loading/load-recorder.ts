/**
 * Records how one rank loads. Time is a chain of instants in whole nanoseconds, and each link of it belongs to the phase
 * that was entered last: the times of all phases add up to the whole by construction, and nothing is counted twice.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import type { RowGroups } from "../checkpoint/row-groups.js";
import { readSlice, type SliceRange } from "../checkpoint/slice.js";
import type { DType } from "../core/dtype.js";
import { InternalError } from "../core/errors.js";
import { countersBetween, readThreadCounters, type ThreadCounters } from "../core/thread-counters.js";
import type { LoadObserver } from "./load-observer.js";
import { LOAD_PHASES, type LoadPhase } from "./load-profile.js";
import { PART_NUMBERS, type PackedLoadRecord, SPAN_NUMBERS } from "./load-record.js";

/** Whole nanoseconds since some instant, the same for all ranks. */
export type LoadClock = () => number;

/** Nanoseconds since `originMs`, milliseconds of the Unix epoch: all threads of a process have one origin. */
export function loadClock(originMs: number): LoadClock {
  const offsetMs = performance.timeOrigin - originMs;
  return () => Math.round((performance.now() + offsetMs) * 1e6);
}

/** What is known of a rank when it is loaded. */
export interface LoadedMemory {
  readonly parameterBytes: number;
  readonly kvCacheBytes: number;
}

/** Places of phases in LOAD_PHASES. */
const PLACES: Readonly<Record<LoadPhase, number>> = {
  index: 0,
  read: 1,
  shard: 2,
  quantize: 3,
  repack: 4,
  wait: 5,
  other: 6,
};

const { index: INDEX, read: READ, other: OTHER } = PLACES;

const PHASE_COUNT = LOAD_PHASES.length;

/** Numbers that there is room for at first: spans of about a thousand tensors. */
const FIRST_CAPACITY = 16 * 1024;

/**
 * A rank calls it some thousand times in code that runs for the first time and is not compiled yet, so that every call and
 * every object counts: phases are places in arrays, and spans are packed where they end (load-record.ts).
 */
export class LoadRecorder implements LoadObserver {
  readonly #rank: number;
  readonly #clock: LoadClock;
  readonly #startNs: number;
  /** Of the span that is open, by phase. */
  readonly #selfNs = new Float64Array(PHASE_COUNT);
  readonly #bytes = new Float64Array(PHASE_COUNT);
  readonly #calls = new Float64Array(PHASE_COUNT);
  /** Its phases in the order in which they were first entered, and the same as bits. */
  readonly #order: number[] = [];
  #entered = 0;
  #spanNs = 0;
  /** Spans that are closed. */
  readonly #names: string[] = [];
  #spans = new Float64Array(FIRST_CAPACITY);
  #length = 0;
  /** Time that no span has. */
  #outsideNs = 0;
  /** Phases that were entered, the last one on top. */
  readonly #stack: number[] = [];
  #top = OTHER;
  #lastNs: number;
  #readsObserved = false;
  /** Whether the read of a file that has begun is part of a phase of reading that was entered before. */
  #isReading = false;
  #helpers: readonly number[] = [];
  #before: ThreadCounters | null = null;

  constructor(rank: number, clock: LoadClock) {
    this.#rank = rank;
    this.#clock = clock;
    this.#startNs = clock();
    this.#lastNs = this.#startNs;
  }

  enter(phase: LoadPhase, name: string = phase): void {
    const place = PLACES[phase];
    const stack = this.#stack;
    if (stack.length === 0) {
      this.#leaveOutside();
      this.#names.push(name);
      this.#spanNs = this.#lastNs;
      this.#order.push(place);
      this.#entered = 1 << place;
    } else if (place !== this.#top) {
      // A phase within itself is no other: the clock need not be asked.
      this.#spend(this.#top);
      if ((this.#entered & (1 << place)) === 0) {
        this.#order.push(place);
        this.#entered |= 1 << place;
      }
    }
    stack.push(this.#top);
    this.#top = place;
  }

  leave(bytes?: number): void {
    const stack = this.#stack;
    const outer = stack.pop();
    if (outer === undefined) throw new InternalError("a phase of loading was left that was not entered");
    const top = this.#top;
    if (bytes !== undefined) this.#count(top, bytes);
    this.#top = outer;
    if (stack.length === 0) {
      this.#spend(top);
      this.#close();
    } else if (outer !== top) {
      this.#spend(top);
    }
  }

  readBegins(): void {
    this.#readsObserved = true;
    // Headers are read to know what there is, not to load it. Runs of one slice are reads within a read.
    this.#isReading = this.#top === READ || this.#top === INDEX;
    if (!this.#isReading) this.enter("read");
  }

  readEnds(bytes: number): void {
    if (!this.#isReading) this.leave(bytes);
    else this.#count(this.#top, bytes);
  }

  /** From here on, what the system counts for the thread counts for loading, with what its helpers read. */
  countSystem(helpers: readonly number[] = []): void {
    this.#helpers = helpers;
    this.#before = readThreadCounters(helpers);
  }

  /**
   * The checkpoint that layers load from, each of its tensors telling when it is read: what `opened` itself brings is
   * `read`, what a quantization config made of it is `making`. Layers load in `shard`: a tensor that is made in that phase
   * has nothing to tell where the files tell of their reads, and is not watched.
   */
  watch(shown: Checkpoint, opened: Checkpoint, making: "shard" | "quantize"): Checkpoint {
    const counting = this.#readsObserved ? null : opened;
    const read = new TensorWatch(this, "read", counting);
    const made = making === "shard" && counting === null ? null : new TensorWatch(this, making, counting);
    const tensors = new Map<string, CheckpointTensor>();
    for (const [name, tensor] of shown.tensors) {
      const watch = opened.tensors.get(name) === tensor ? read : made;
      tensors.set(name, watch === null ? tensor : new WatchedTensor(tensor, watch));
    }
    return {
      tensors,
      get bytesRead() {
        return shown.bytesRead;
      },
      close: () => shown.close(),
    };
  }

  /** What was recorded. The rank is loaded. */
  finish(memory: LoadedMemory): PackedLoadRecord {
    if (this.#stack.length > 0) {
      throw new InternalError(`loading ended within its phase ${LOAD_PHASES[this.#top]}`);
    }
    this.#leaveOutside();
    const system = this.#before === null ? {} : countersBetween(this.#before, readThreadCounters(this.#helpers));
    return {
      rank: this.#rank,
      startNs: this.#startNs,
      endNs: this.#lastNs,
      outsideNs: this.#outsideNs,
      readsObserved: this.#readsObserved,
      parameterBytes: memory.parameterBytes,
      kvCacheBytes: memory.kvCacheBytes,
      ...(Object.keys(system).length === 0 ? {} : { system }),
      names: this.#names,
      spans: this.#spans.slice(0, this.#length),
    };
  }

  /** The time since the last instant belongs to the phase at `place`. */
  #spend(place: number): void {
    const now = this.#clock();
    this.#selfNs[place] = (this.#selfNs[place] ?? 0) + now - this.#lastNs;
    this.#lastNs = now;
  }

  /** It belongs to no span. */
  #leaveOutside(): void {
    const now = this.#clock();
    this.#outsideNs += now - this.#lastNs;
    this.#lastNs = now;
  }

  #count(place: number, bytes: number): void {
    this.#bytes[place] = (this.#bytes[place] ?? 0) + bytes;
    this.#calls[place] = (this.#calls[place] ?? 0) + 1;
  }

  /** Packs the span that was open, and makes its numbers nothing. */
  #close(): void {
    const order = this.#order;
    const [selfNs, bytes, calls] = [this.#selfNs, this.#bytes, this.#calls];
    let at = this.#length;
    if (at + SPAN_NUMBERS + PHASE_COUNT * PART_NUMBERS > this.#spans.length) this.#grow();
    const spans = this.#spans;
    spans[at++] = this.#spanNs;
    spans[at++] = this.#lastNs - this.#spanNs;
    spans[at++] = order.length;
    for (const place of order) {
      spans[at++] = place;
      spans[at++] = selfNs[place] ?? 0;
      spans[at++] = bytes[place] ?? 0;
      spans[at++] = calls[place] ?? 0;
      selfNs[place] = 0;
      bytes[place] = 0;
      calls[place] = 0;
    }
    order.length = 0;
    this.#length = at;
  }

  #grow(): void {
    const larger = new Float64Array(2 * this.#spans.length);
    larger.set(this.#spans);
    this.#spans = larger;
  }
}

/**
 * A tensor whose reads are told, each slice as a whole, however many runs it has. The tensor may be of a class that keeps
 * its own counsel: it is called, not copied. One object each, no closures: a rank has hundreds, and reads each but once, in
 * code that is not compiled yet.
 */
class WatchedTensor implements CheckpointTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly file: string;
  readonly #tensor: CheckpointTensor;
  readonly #watch: TensorWatch;

  constructor(tensor: CheckpointTensor, watch: TensorWatch) {
    this.name = tensor.name;
    this.dtype = tensor.dtype;
    this.shape = tensor.shape;
    this.file = tensor.file;
    this.#tensor = tensor;
    this.#watch = watch;
  }

  readRowGroups(ranges: readonly SliceRange[], groups: RowGroups, firstRow: number): boolean {
    const before = this.#watch.begin(this.name);
    const isRead = this.#tensor.readRowGroups?.(ranges, groups, firstRow) ?? false;
    const [rows = { start: 0, end: 0 }] = ranges;
    this.#watch.end(before, isRead ? (rows.end - rows.start) * groups.rowBytes : 0);
    return isRead;
  }

  read(destination: Uint8Array, byteOffset: number): void {
    const before = this.#watch.begin(this.name);
    this.#tensor.read(destination, byteOffset);
    this.#watch.end(before, destination.length);
  }

  readSlice(ranges: readonly SliceRange[], destination: Uint8Array): void {
    const before = this.#watch.begin(this.name);
    readSlice(this.#tensor, ranges, destination);
    this.#watch.end(before, destination.length);
  }
}

/** What a recorder is told of the reads of some tensors. Read bytes that files do not tell of are counted around them. */
class TensorWatch {
  readonly #recorder: LoadRecorder;
  readonly #phase: "read" | "shard" | "quantize";
  readonly #opened: Checkpoint | null;

  /** `opened`: the checkpoint whose bytes tell what was read, null where files tell it themselves. */
  constructor(recorder: LoadRecorder, phase: "read" | "shard" | "quantize", opened: Checkpoint | null) {
    this.#recorder = recorder;
    this.#phase = phase;
    this.#opened = opened;
  }

  /** Returns what had been read before. */
  begin(name: string): number {
    this.#recorder.enter(this.#phase, name);
    return this.#opened?.bytesRead ?? 0;
  }

  end(before: number, bytes: number): void {
    const untold = this.#opened === null ? undefined : this.#opened.bytesRead - before;
    if (this.#phase === "read") {
      this.#recorder.leave(untold);
      return;
    }
    if (untold !== undefined && untold > 0) {
      // At a time that nobody told of.
      this.#recorder.enter("read");
      this.#recorder.leave(untold);
    }
    // The bytes of a shard are those that reach a parameter.
    this.#recorder.leave(this.#phase === "quantize" ? bytes : undefined);
  }
}
