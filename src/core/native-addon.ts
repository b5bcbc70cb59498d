/**
 * Finds and loads the native addon, once per thread. What the addon exports is declared here, on the lowest floor,
 * because kernels, collectives and memory all rest on it; each of them wraps its own part.
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { DType } from "./dtype.js";
import { OptionError, reasonOf } from "./errors.js";
import { packageFolder } from "./package-files.js";

/** Opaque number that stands for a region of memory known to the addon; 0 means none. */
export type NativeHandle = number;

/**
 * Exports of the addon. Sizes are in elements unless the name says bytes. The binding validates every handle against
 * the extents it was bound with and throws a TypeError or RangeError; kernels trust what the binding passed.
 */
export interface NativeAddon {
  /** Version of this interface; must equal `NATIVE_ABI`. */
  readonly abi: number;
  /** Instruction set in use by this thread: "portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon", "neondotprod" or "neoni8mm". */
  readonly isa: string;
  /** Instruction sets that this CPU and OS can run, best first; the first one is the default. */
  readonly supportedIsas: readonly string[];
  /** Extensions of the instruction set that this CPU and OS offer, as /proc/cpuinfo calls them. */
  readonly cpuFeatures: readonly string[];
  /**
   * Whether the instruction set in use has products of bf16, and they are faster here than those of f32: on some CPUs they are
   * half as fast. Measured once a process.
   */
  readonly bf16Pays: boolean;
  /** Uses another of `supportedIsas` in this thread from now on; throws a RangeError that names them for anything else. */
  selectIsa(isa: string): void;

  // threads
  /** Threads that share the calls of kernels, the calling one included. */
  readonly threads: number;
  /**
   * From now on kernels called by this thread run on that many threads, 1 to 1024, itself included; they wait as the
   * policy says (see src/collectives/shared-memory.ts) and end with this thread. Throws an Error when the system has no
   * more threads or memory.
   */
  setThreads(threads: number, spinMicros: number, yieldMicros: number): void;
  /**
   * Keeps all of `threads` to the CPUs, i32 ids of the system's as bytes: thread i to `cpus[i]` alone with `each` = 1, else
   * every thread to all of them. Memory they touch first lies on the NUMA node, unless that is -1 or the system forbids it.
   * False where the system does not keep threads to CPUs, or refuses; some of them may be kept then.
   */
  placeThreads(cpus: Uint8Array, each: 0 | 1, node: number): boolean;
  /** Ids of the system's (gettid) of the threads beside this one; none where it has no such ids. */
  helperIds(): number[];

  // probes: see src/kernels/probe.ts
  /** Instruction set that the probes of arithmetic use: the best of this CPU, whatever kernels use. */
  readonly probeIsa: string;
  /** GB/s that `threads` threads together read from so many fresh bytes; the best of the passes. */
  probeRead(bytes: number, passes: number): number;
  /** Operations a nanosecond of `threads` threads, two for a product that is added, measured for so long. */
  probeMultiplyAdd(milliseconds: number): number;
  probeDotInt8(milliseconds: number): number;
  /** The same of products of bf16; 0 where the CPU has no instruction for them. */
  probeDotBf16(milliseconds: number): number;
  /** Nanoseconds from one of `threads`, at least two, to another: of a cache line, of a wake-up. */
  probeCacheLine(milliseconds: number): number;
  probeWake(milliseconds: number): number;
  /** Nanoseconds of a call that is shared by `threads` threads, at least two, and has nothing to do. */
  probeForkJoin(milliseconds: number): number;

  // memory
  /** Address of the first byte of a view modulo `modulo`, a power of two of at most 2^30. */
  addressModulo(view: Uint8Array, modulo: number): number;
  /** Advises huge pages for the whole pages inside the view; false where the system has none. */
  adviseHugePages(view: Uint8Array): boolean;
  /** Writes one byte in every page of the view so that the calling thread's node owns it. The view must be all zero. */
  touch(view: Uint8Array): void;
  /**
   * Registers `rows * columns` elements for use by kernels and keeps the view alive until `release`. The view must lie
   * over a SharedArrayBuffer (which cannot be detached), be 64-byte aligned and exactly as long as the elements.
   */
  bind(view: Uint8Array, dtype: DType, rows: number, columns: number): NativeHandle;
  /** Forgets a handle; every later use of it throws. */
  release(handle: NativeHandle): void;

  // files
  /**
   * Fills the destination, dense, with `runs` runs of `runBytes` bytes that lie `stride` bytes apart in a file, from
   * `position` on; on all threads of the caller. Returns the bytes before the first that the file does not have. Throws an
   * Error in the words of the system. Only where there is pread: not on Windows.
   */
  readRuns(
    fd: number,
    position: number,
    runBytes: number,
    stride: number,
    runs: number,
    destination: Uint8Array,
  ): number;

  /**
   * Reads runs of blocks and takes them apart (src/checkpoint/block-layout.ts has the meaning of the numbers), on all threads
   * of the caller. With `rowBlocks` other than 0, `codes` is a matrix in groups of rows of so many blocks, and what is read goes
   * to row `firstRow` and those after it. Returns the bytes before the first that the file does not have, and throws, as `readRuns` does.
   */
  readBlocks(
    fd: number,
    position: number,
    blocks: number,
    stride: number,
    runs: number,
    blockBytes: number,
    codesOffset: number,
    groups: number,
    groupBytes: number,
    codeBits: number,
    headerOffset: number,
    headerBytes: number,
    codes: Uint8Array,
    headers: Uint8Array,
    rowBlocks: number,
    firstRow: number,
  ): number;

  // kernels: see src/kernels/kernels.ts for meaning and shapes
  gatherRows(out: NativeHandle, source: NativeHandle, indices: NativeHandle, first: number, rows: number): void;
  rmsNorm(out: NativeHandle, x: NativeHandle, weight: NativeHandle, rows: number, epsilon: number): void;
  addRmsNorm(
    out: NativeHandle,
    residual: NativeHandle,
    x: NativeHandle,
    weight: NativeHandle,
    rows: number,
    epsilon: number,
  ): void;
  headNorm(
    x: NativeHandle,
    weight: NativeHandle,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
    epsilon: number,
  ): void;
  rope(
    x: NativeHandle,
    positions: NativeHandle,
    cosSin: NativeHandle,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
  ): void;
  writeKv(
    keys: NativeHandle,
    values: NativeHandle,
    scales: NativeHandle,
    source: NativeHandle,
    slots: NativeHandle,
    rows: number,
    keyColumn: number,
    valueColumn: number,
    kvHeads: number,
    headSize: number,
    blockSize: number,
  ): void;
  attention(
    out: NativeHandle,
    q: NativeHandle,
    keys: NativeHandle,
    values: NativeHandle,
    scales: NativeHandle,
    kvHeadOf: NativeHandle,
    queryStarts: NativeHandle,
    contextLengths: NativeHandle,
    blockTables: NativeHandle,
    sequences: number,
    heads: number,
    kvHeads: number,
    headSize: number,
    blockSize: number,
    scale: number,
    slidingWindow: number,
    softCap: number,
  ): void;
  siluMul(out: NativeHandle, gateUp: NativeHandle, rows: number): void;
  argmax(
    values: NativeHandle,
    ids: NativeHandle,
    logits: NativeHandle,
    rows: number,
    columns: number,
    firstId: number,
  ): void;

  // kernels that read weights, one for each execution format. bias and minimums may be 0.
  linear(
    out: NativeHandle,
    x: NativeHandle,
    weight: NativeHandle,
    bias: NativeHandle,
    rows: number,
    firstColumn: number,
  ): void;
  linearCode4(
    out: NativeHandle,
    x: NativeHandle,
    codes: NativeHandle,
    codebook: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    bias: NativeHandle,
    rows: number,
    firstColumn: number,
    blockSize: number,
  ): void;
  /**
   * Rounds x to bf16 first; the weight is bf16 with an even number of inputs. Results are the same on every instruction set.
   */
  linearBf16(
    out: NativeHandle,
    x: NativeHandle,
    weight: NativeHandle,
    bias: NativeHandle,
    rows: number,
    firstColumn: number,
  ): void;
  linearInt8(
    out: NativeHandle,
    x: NativeHandle,
    codes: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    bias: NativeHandle,
    rows: number,
    firstColumn: number,
    blockSize: number,
    multiplier: number,
  ): void;
  embedding(out: NativeHandle, ids: NativeHandle, table: NativeHandle, rows: number, firstId: number): void;
  embeddingCode4(
    out: NativeHandle,
    ids: NativeHandle,
    codes: NativeHandle,
    codebook: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    rows: number,
    firstId: number,
    blockSize: number,
  ): void;
  embeddingInt8(
    out: NativeHandle,
    ids: NativeHandle,
    codes: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    rows: number,
    firstId: number,
    blockSize: number,
    multiplier: number,
  ): void;

  // prepared weights. Their bytes are put in another order where they are; `activations` is a number of native.ts.
  /**
   * Takes the weight over and returns the number that stands for it, 0 where it must stay as it is. Its operands may be
   * released: the weight keeps their memory alive. `inGroups` is 1 where the codes of whole groups of rows are in order.
   */
  prepareCode4(
    codes: NativeHandle,
    codebook: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    blockSize: number,
    activations: number,
    inGroups: number,
  ): number;
  prepareInt8(
    codes: NativeHandle,
    scales: NativeHandle,
    minimums: NativeHandle,
    blockSize: number,
    multiplier: number,
    activations: number,
    inGroups: number,
  ): number;
  /** Forgets a prepared weight; every later use of its number throws. */
  releaseWeight(weight: number): void;
  linearPrepared(
    out: NativeHandle,
    x: NativeHandle,
    weight: number,
    bias: NativeHandle,
    rows: number,
    firstColumn: number,
  ): void;
  embeddingPrepared(out: NativeHandle, ids: NativeHandle, weight: number, rows: number, firstId: number): void;

  // recordings of calls of kernels and collectives
  /** From now on such calls are written down when they have succeeded. Throws a RangeError where they are already. */
  startRecording(): void;
  /** No longer. Returns the number of the recording. Throws a RangeError where they were not. */
  stopRecording(): number;
  /** Forgets a recording; every later use of its number throws. */
  releaseRecording(recording: number): void;
  /**
   * Makes the calls once more, checked as they were then, and throws as the first one that fails does. Returns 0, or what ended
   * it before: `256 * n + status`, where collective n of them, from 0, returned another status than that of success.
   */
  replay(recording: number): number;
  /** The same. `micros` has two f64 a call: microseconds it took, and those of them that it waited for other ranks. */
  replayTimed(recording: number, micros: Uint8Array): number;

  // collectives: see src/collectives/region.ts. They block until all ranks call, and return a STATUS of region.ts.
  // `site` digests the name of the module that asks, and must be the same on every rank.
  /** Sums the first `count` f32 of `data` over all ranks, in place, in rank order. */
  allReduce(region: NativeHandle, rank: number, site: number, data: NativeHandle, count: number): number;
  /** Row m of `out` becomes row m of every rank's `data`; this rank contributes `width` columns. */
  allGather(
    region: NativeHandle,
    rank: number,
    site: number,
    data: NativeHandle,
    out: NativeHandle,
    rows: number,
    width: number,
    checksum: number,
  ): number;
  /** The first `count` elements of `data` on rank `root` replace those of every rank. */
  broadcast(region: NativeHandle, rank: number, site: number, data: NativeHandle, count: number, root: number): number;
  barrier(region: NativeHandle, rank: number, site: number): number;
  /** Wakes all ranks that are parked in one of the above, so that they see that the region was poisoned. */
  wakeCollectives(region: Uint8Array): void;
  /**
   * The floor under collectives of two ranks, for benches: nanoseconds in which both threads (`side` 0 and 1) write so many
   * lines of 64 bytes, tell each other, and read the other's; the mean of `rounds`, which are as many on both sides.
   * `memory` is u8, zeroed, and has 256 bytes a line and 4 KiB more. Negative if the other side stays away for a
   * second.
   */
  exchangeLines(memory: NativeHandle, side: number, lines: number, rounds: number): number;
}

/** Version of the `NativeAddon` interface this code was written for. */
export const NATIVE_ABI = 8;

export type AddonStatus =
  | { readonly loaded: true; readonly addon: NativeAddon; readonly path: string }
  /** `error` is set when the addon is there but an option of the user forbids its use: whoever needs kernels throws it. */
  | { readonly loaded: false; readonly reason: string; readonly error?: OptionError };

const require = createRequire(import.meta.url);
const candidates = ["build/Release/shardloom_native.node", "build/shardloom_native.node"].map((path) =>
  fileURLToPath(new URL(path, packageFolder)),
);

let status: AddonStatus | undefined;

/**
 * The addon, or why there is none. `SHARDLOOM_KERNELS=reference` turns it off, `SHARDLOOM_ISA` forces an instruction
 * set. Never throws.
 */
export function nativeAddon(): AddonStatus {
  status ??= load();
  return status;
}

function load(): AddonStatus {
  if (process.env["SHARDLOOM_KERNELS"] === "reference") {
    return { loaded: false, reason: "SHARDLOOM_KERNELS=reference" };
  }
  const path = process.env["SHARDLOOM_NATIVE_ADDON"] ?? candidates.find((candidate) => existsSync(candidate));
  if (path === undefined) {
    return { loaded: false, reason: "it was not built (a C++20 compiler and cmake are needed: npm run build)" };
  }
  try {
    const addon: NativeAddon = require(path);
    if (addon.abi !== NATIVE_ABI) {
      return { loaded: false, reason: `${path} has interface ${addon.abi}, expected ${NATIVE_ABI}: run npm run build` };
    }
    const isa = process.env["SHARDLOOM_ISA"];
    if (isa !== undefined && isa !== "") {
      if (!addon.supportedIsas.includes(isa)) return unsupportedIsa(isa, addon.supportedIsas);
      addon.selectIsa(isa);
    }
    return { loaded: true, addon, path };
  } catch (error) {
    return { loaded: false, reason: `${path}: ${reasonOf(error)}` };
  }
}

function unsupportedIsa(received: string, supported: readonly string[]): AddonStatus {
  const expected = supported.join(", ");
  const error = new OptionError(
    "UNSUPPORTED_ISA",
    `expected SHARDLOOM_ISA to be an instruction set of this machine (${expected}) but received ${JSON.stringify(received)}`,
    { option: "SHARDLOOM_ISA", expected, received },
  );
  return { loaded: false, reason: error.message, error };
}
