/** How many threads share the calls of kernels in this process. */
import { availableParallelism } from "node:os";
import { readTopology } from "../../src/core/machine-topology.js";
import { nativeAddon } from "../../src/core/native-addon.js";

/** Helpers spin between calls, as they do within a step of a model. */
const SPIN_MICROS = 100;

const topology = readTopology();
const cpus = topology.known ? topology.cpus.map(({ id }) => id) : [];
/** Asked before this thread keeps to one CPU, which is then all that is available to it. */
const available = availableParallelism();

/** One, and as many as there are CPUs. */
export function threadCounts(): number[] {
  return [...new Set([1, available])];
}

/** As tables have it. */
export const threadsName = (threads: number): string => (threads === 1 ? "1 thread" : `${threads} threads`);

/** Each thread keeps to a CPU, as those of ranks do. Does nothing where the reference kernels compute, in one thread. */
export function useThreads(threads: number): void {
  const native = nativeAddon();
  if (!native.loaded) return;
  native.addon.setThreads(threads, SPIN_MICROS, SPIN_MICROS);
  if (cpus.length < threads) return;
  native.addon.placeThreads(new Uint8Array(Int32Array.from(cpus.slice(0, threads)).buffer), 1, -1);
}
