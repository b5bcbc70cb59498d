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
import {
  eachPhase,
  LOAD_PHASES,
  type LoadPhase,
  type LoadSpan,
  type PhaseTotals,
  type RankLoadRecord,
} from "./load-profile.js";

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

/** Places of phases in arrays: counting is done a hundred thousand times. */
const PLACES: Readonly<Record<LoadPhase, number>> = {
  index: 0,
  read: 1,
  shard: 2,
  quantize: 3,
  repack: 4,
  wait: 5,
  other: 6,
};

/** Times, bytes and calls by phase. */
class Totals {
  readonly selfNs = new Float64Array(LOAD_PHASES.length);
  readonly bytes = new Float64Array(LOAD_PHASES.length);
  readonly calls = new Float64Array(LOAD_PHASES.length);

  of(phase: LoadPhase): PhaseTotals {
    const at = PLACES[phase];
    return { selfNs: this.selfNs[at] ?? 0, bytes: this.bytes[at] ?? 0, calls: this.calls[at] ?? 0 };
  }

  /** The same, which is nothing from then on. */
  take(phase: LoadPhase): PhaseTotals {
    const taken = this.of(phase);
    const at = PLACES[phase];
    this.selfNs[at] = 0;
    this.bytes[at] = 0;
    this.calls[at] = 0;
    return taken;
  }

  add(phase: LoadPhase, { selfNs, bytes, calls }: PhaseTotals): void {
    const at = PLACES[phase];
    this.selfNs[at] = (this.selfNs[at] ?? 0) + selfNs;
    this.bytes[at] = (this.bytes[at] ?? 0) + bytes;
    this.calls[at] = (this.calls[at] ?? 0) + calls;
  }

  spend(phase: LoadPhase, ns: number): void {
    const at = PLACES[phase];
    this.selfNs[at] = (this.selfNs[at] ?? 0) + ns;
  }

  count(phase: LoadPhase, bytes: number): void {
    const at = PLACES[phase];
    this.bytes[at] = (this.bytes[at] ?? 0) + bytes;
    this.calls[at] = (this.calls[at] ?? 0) + 1;
  }
}

interface OpenSpan {
  readonly name: string;
  readonly phase: LoadPhase;
  readonly startNs: number;
  /** In the order in which they were first entered. */
  readonly order: LoadPhase[];
}

export class LoadRecorder implements LoadObserver {
  readonly #rank: number;
  readonly #clock: LoadClock;
  readonly #startNs: number;
  readonly #spans: LoadSpan[] = [];
  /** Of what is closed, and of the span that is open: one for all spans, as there are thousands. */
  readonly #totals = new Totals();
  readonly #open = new Totals();
  /** Phases that were entered, the last one on top. */
  readonly #stack: LoadPhase[] = [];
  #top: LoadPhase = "other";
  #lastNs: number;
  #span: OpenSpan | null = null;
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
    if (this.#span === null) {
      this.#advance();
      this.#span = { name, phase, startNs: this.#lastNs, order: [phase] };
    } else if (phase !== this.#top) {
      this.#advance();
      if (!this.#span.order.includes(phase)) this.#span.order.push(phase);
    }
    // A phase within itself is no other: the clock need not be asked.
    this.#stack.push(this.#top);
    this.#top = phase;
  }

  leave(bytes?: number): void {
    const span = this.#span;
    const outer = this.#stack.pop();
    if (span === null || outer === undefined)
      throw new InternalError("a phase of loading was left that was not entered");
    const phase = this.#top;
    if (bytes !== undefined) this.#open.count(phase, bytes);
    if (outer !== phase || this.#stack.length === 0) this.#advance();
    this.#top = outer;
    if (this.#stack.length === 0) this.#close(span);
  }

  readBegins(): void {
    this.#readsObserved = true;
    // Headers are read to know what there is, not to load it. Runs of one slice are reads within a read.
    this.#isReading = this.#top === "read" || this.#top === "index";
    if (!this.#isReading) this.enter("read");
  }

  readEnds(bytes: number): void {
    if (!this.#isReading) this.leave(bytes);
    else this.#open.count(this.#top, bytes);
  }

  /** From here on, what the system counts for the thread counts for loading, with what its helpers read. */
  countSystem(helpers: readonly number[] = []): void {
    this.#helpers = helpers;
    this.#before = readThreadCounters(helpers);
  }

  /**
   * The checkpoint that layers load from, each of its tensors telling when it is read: what `opened` itself brings is
   * `read`, what a quantization config made of it is `making`.
   */
  watch(shown: Checkpoint, opened: Checkpoint, making: "shard" | "quantize"): Checkpoint {
    const counting = this.#readsObserved ? null : opened;
    const read = new TensorWatch(this, "read", counting);
    const made = new TensorWatch(this, making, counting);
    const tensors = new Map<string, CheckpointTensor>();
    for (const [name, tensor] of shown.tensors) {
      tensors.set(name, new WatchedTensor(tensor, opened.tensors.get(name) === tensor ? read : made));
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
  finish(memory: LoadedMemory): RankLoadRecord {
    if (this.#stack.length > 0) throw new InternalError(`loading ended within its phase ${this.#top}`);
    this.#advance();
    const system = this.#before === null ? {} : countersBetween(this.#before, readThreadCounters(this.#helpers));
    return {
      rank: this.#rank,
      startNs: this.#startNs,
      endNs: this.#lastNs,
      phases: eachPhase((phase) => this.#totals.of(phase)),
      readsObserved: this.#readsObserved,
      parameterBytes: memory.parameterBytes,
      kvCacheBytes: memory.kvCacheBytes,
      ...(Object.keys(system).length === 0 ? {} : { system }),
      spans: this.#spans,
    };
  }

  /** The time since the last instant belongs to the phase on top. */
  #advance(): void {
    const now = this.#clock();
    const totals = this.#span === null ? this.#totals : this.#open;
    totals.spend(this.#top, now - this.#lastNs);
    this.#lastNs = now;
  }

  #close({ name, phase, startNs, order }: OpenSpan): void {
    const parts = order.map((each) => {
      const part = this.#open.take(each);
      this.#totals.add(each, part);
      return { phase: each, ...part };
    });
    this.#spans.push({ name, phase, startNs, durationNs: this.#lastNs - startNs, parts });
    this.#span = null;
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
