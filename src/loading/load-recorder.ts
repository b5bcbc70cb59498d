/**
 * Records how one rank loads. Time is a chain of instants in whole nanoseconds, and each link of it belongs to the phase
 * that was entered last: the times of all phases add up to the whole by construction, and nothing is counted twice.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { InternalError } from "../core/errors.js";
import { countersBetween, readThreadCounters, type ThreadCounters } from "../core/thread-counters.js";
import type { LoadObserver } from "./load-observer.js";
import { eachPhase, type LoadPhase, type LoadSpan, type RankLoadRecord } from "./load-profile.js";

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

/** Times, bytes and calls by phase. */
class Totals {
  readonly selfNs = eachPhase(() => 0);
  readonly bytes = eachPhase(() => 0);
  readonly calls = eachPhase(() => 0);
}

interface OpenSpan {
  readonly name: string;
  readonly phase: LoadPhase;
  readonly startNs: number;
  readonly totals: Totals;
  /** In the order in which they were first entered. */
  readonly order: LoadPhase[];
}

export class LoadRecorder implements LoadObserver {
  readonly #rank: number;
  readonly #clock: LoadClock;
  readonly #startNs: number;
  readonly #spans: LoadSpan[] = [];
  readonly #totals = new Totals();
  /** Phases that were entered, the last one on top. */
  readonly #stack: LoadPhase[] = [];
  #top: LoadPhase = "other";
  #lastNs: number;
  #span: OpenSpan | null = null;
  #readsObserved = false;
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
      this.#span = { name, phase, startNs: this.#lastNs, totals: new Totals(), order: [phase] };
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
    if (bytes !== undefined) {
      span.totals.bytes[phase] += bytes;
      span.totals.calls[phase]++;
    }
    if (outer !== phase || this.#stack.length === 0) this.#advance();
    this.#top = outer;
    if (this.#stack.length === 0) this.#close(span);
  }

  readBegins(): void {
    this.#readsObserved = true;
    // Headers are read to know what there is, not to load it.
    this.enter(this.#top === "index" ? "index" : "read");
  }

  readEnds(bytes: number): void {
    this.leave(bytes);
  }

  /** From here on, what the system counts for the thread counts for loading. */
  countSystem(): void {
    this.#before = readThreadCounters();
  }

  /**
   * The checkpoint that layers load from, each of its tensors telling when it is read: what `opened` itself brings is
   * `read`, what a quantization config made of it is `making`.
   */
  watch(shown: Checkpoint, opened: Checkpoint, making: "shard" | "quantize"): Checkpoint {
    const watched = [...shown.tensors.values()].map((tensor) => {
      const isOwn = opened.tensors.get(tensor.name) === tensor;
      return [
        tensor.name,
        isOwn ? this.#readTensor(tensor, opened) : this.#madeTensor(tensor, opened, making),
      ] as const;
    });
    return {
      tensors: new Map(watched),
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
    const { selfNs, bytes, calls } = this.#totals;
    const system = this.#before === null ? {} : countersBetween(this.#before, readThreadCounters());
    return {
      rank: this.#rank,
      startNs: this.#startNs,
      endNs: this.#lastNs,
      phases: eachPhase((phase) => ({ selfNs: selfNs[phase], bytes: bytes[phase], calls: calls[phase] })),
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
    const totals = this.#span?.totals ?? this.#totals;
    totals.selfNs[this.#top] += now - this.#lastNs;
    this.#lastNs = now;
  }

  #close({ name, phase, startNs, totals, order }: OpenSpan): void {
    const parts = order.map((each) => {
      const part = { phase: each, selfNs: totals.selfNs[each], bytes: totals.bytes[each], calls: totals.calls[each] };
      this.#totals.selfNs[each] += part.selfNs;
      this.#totals.bytes[each] += part.bytes;
      this.#totals.calls[each] += part.calls;
      return part;
    });
    this.#spans.push({ name, phase, startNs, durationNs: this.#lastNs - startNs, parts });
    this.#span = null;
  }

  #readTensor(tensor: CheckpointTensor, opened: Checkpoint): CheckpointTensor {
    const { name, dtype, shape, file } = tensor;
    const observed = this.#readsObserved;
    const around = (reading: () => void): void => {
      this.enter("read", name);
      const before = observed ? 0 : opened.bytesRead;
      reading();
      if (observed) this.leave();
      else this.leave(opened.bytesRead - before);
    };
    return { name, dtype, shape, file, ...watchedReads(tensor, around) };
  }

  #madeTensor(tensor: CheckpointTensor, opened: Checkpoint, making: "shard" | "quantize"): CheckpointTensor {
    const { name, dtype, shape, file } = tensor;
    const observed = this.#readsObserved;
    const around = (reading: () => void, sizeBytes: number): void => {
      this.enter(making, name);
      const before = observed ? 0 : opened.bytesRead;
      reading();
      if (!observed) this.#note(opened.bytesRead - before);
      // The bytes of a shard are those that reach a parameter.
      if (making === "quantize") this.leave(sizeBytes);
      else this.leave();
    };
    return { name, dtype, shape, file, ...watchedReads(tensor, around) };
  }

  /** Bytes that were read at a time that nobody told of. */
  #note(bytes: number): void {
    if (bytes === 0) return;
    this.enter("read");
    this.leave(bytes);
  }
}

/** The ways to read a tensor, each with something done around it. */
function watchedReads(
  tensor: CheckpointTensor,
  around: (reading: () => void, sizeBytes: number) => void,
): Pick<CheckpointTensor, "read" | "readSlice"> {
  const read: CheckpointTensor["read"] = (destination, byteOffset) => {
    around(() => tensor.read(destination, byteOffset), destination.length);
  };
  if (tensor.readSlice === undefined) return { read };
  return {
    read,
    readSlice: (ranges, destination) => around(() => tensor.readSlice?.(ranges, destination), destination.length),
  };
}
