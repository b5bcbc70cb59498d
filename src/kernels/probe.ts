/**
 * Measures the limits of this machine: what any kernel can reach at most, by loops of the addon that do nothing else.
 * For benches and for `shardloom doctor`, which say what share of it is reached.
 */
import { coresOf, type MachineTopology, readTopology } from "../core/machine-topology.js";
import { type NativeAddon, nativeAddon } from "../core/native-addon.js";

/** Limits of the machine. A figure is the best of several tries, for whatever else runs makes it only worse. */
export interface MachineLimits {
  /** Instruction set that the arithmetic was measured with. */
  readonly isa: string;
  /** Threads of the figures named `all`. */
  readonly threads: number;
  /** GB/s read from memory. */
  readonly readGBs: Scaling;
  /** f32 multiply-adds, two operations each, in GFLOP/s. */
  readonly fmaGflops: Scaling;
  /** int8 products summed in int32, two operations each, in GOP/s. */
  readonly dotInt8Gops: Scaling;
  /** bf16 products summed in f32, two operations each, in GFLOP/s; null where the CPU has no instruction for them. */
  readonly dotBf16Gflops: Scaling | null;
  /** What passes between two threads takes so long; null on a single core. */
  readonly exchange: Exchange | null;
}

export interface Scaling {
  readonly one: number;
  readonly all: number;
}

export interface Exchange {
  /** Nanoseconds that a cache line takes from one thread to another. */
  readonly cacheLineNs: number;
  /** Microseconds from waking a parked thread until it runs. */
  readonly wakeMicros: number;
  /** Microseconds of a kernel call that all threads share and that has nothing to do. */
  readonly forkJoinMicros: number;
}

export interface ProbeOptions {
  /** Threads to measure with besides one. */
  readonly threads: number;
  /** Memory to read, far more than the caches hold. Default 256 MiB. */
  readonly readBytes?: number;
  /** How long one figure is measured, but for memory. Default 30 ms. */
  readonly milliseconds?: number;
}

const DEFAULT_READ_BYTES = 256 * 2 ** 20;
const DEFAULT_MILLISECONDS = 30;
const PASSES = 5;
/** Threads of the probes spin: nothing else is to be measured. */
const SPIN_MICROS = 1_000;

/**
 * Measures in about a second, on the calling thread and helpers that end with the call; the calling thread has one
 * thread for its kernels afterwards. Null when the addon is not loaded. Throws an Error when the system refuses threads
 * or memory.
 */
export function measureLimits(options: ProbeOptions): MachineLimits | null {
  const native = nativeAddon();
  if (!native.loaded) return null;
  const { addon } = native;
  const { threads, milliseconds = DEFAULT_MILLISECONDS } = options;
  const topology = readTopology();
  try {
    addon.setThreads(1, 0, 0);
    const one = measureThreads(addon, options);
    addon.setThreads(threads, SPIN_MICROS, SPIN_MICROS);
    spread(addon, topology, threads);
    const all = threads === 1 ? one : measureThreads(addon, options);
    // What passes between two threads is measured with a new one, which would be born onto the same core.
    letGo(addon, topology);
    return {
      isa: addon.probeIsa,
      threads,
      readGBs: { one: one.read, all: all.read },
      fmaGflops: { one: one.multiplyAdd, all: all.multiplyAdd },
      dotInt8Gops: { one: one.dotInt8, all: all.dotInt8 },
      dotBf16Gflops: one.dotBf16 === 0 ? null : { one: one.dotBf16, all: all.dotBf16 },
      exchange: threads === 1 ? null : measureExchange(addon, milliseconds),
    };
  } finally {
    letGo(addon, topology);
    addon.setThreads(1, 0, 0);
  }
}

/** Puts threads on a core each, if they fit: two on one core would measure half of what there is. */
function spread(addon: NativeAddon, topology: MachineTopology, threads: number): void {
  const cores = coresOf(topology).flatMap((core) => core.slice(0, 1).map(({ id }) => id));
  if (topology.known && threads <= cores.length) addon.placeThreads(idBytes(cores.slice(0, threads)), 1, -1);
}

/** Lets the threads run anywhere again. */
function letGo(addon: NativeAddon, { known, cpus }: MachineTopology): void {
  if (known) addon.placeThreads(idBytes(cpus.map(({ id }) => id)), 0, -1);
}

function idBytes(ids: readonly number[]): Uint8Array {
  return new Uint8Array(Int32Array.from(ids).buffer);
}

interface Throughput {
  readonly read: number;
  readonly multiplyAdd: number;
  readonly dotInt8: number;
  readonly dotBf16: number;
}

function measureThreads(addon: NativeAddon, options: ProbeOptions): Throughput {
  const { readBytes = DEFAULT_READ_BYTES, milliseconds = DEFAULT_MILLISECONDS } = options;
  return {
    read: addon.probeRead(readBytes, PASSES),
    multiplyAdd: addon.probeMultiplyAdd(milliseconds),
    dotInt8: addon.probeDotInt8(milliseconds),
    dotBf16: addon.probeDotBf16(milliseconds),
  };
}

function measureExchange(addon: NativeAddon, milliseconds: number): Exchange {
  return {
    cacheLineNs: addon.probeCacheLine(milliseconds),
    wakeMicros: addon.probeWake(milliseconds) / 1000,
    forkJoinMicros: addon.probeForkJoin(milliseconds) / 1000,
  };
}
