/** How many threads share the calls of kernels in this process. */
import { availableParallelism } from "node:os";
import { nativeAddon } from "../../src/core/native-addon.js";

/** Helpers spin between calls, as they do within a step of a model. */
const SPIN_MICROS = 100;

/** One, and as many as there are CPUs. */
export function threadCounts(): number[] {
  return [...new Set([1, availableParallelism()])];
}

/** As tables have it. */
export const threadsName = (threads: number): string => (threads === 1 ? "1 thread" : `${threads} threads`);

/** Does nothing where the reference kernels compute, in one thread. */
export function useThreads(threads: number): void {
  const native = nativeAddon();
  if (native.loaded) native.addon.setThreads(threads, SPIN_MICROS, SPIN_MICROS);
}
