/** The threads of a rank, carried out: helpers that share its kernels' calls, and CPUs and memory that it keeps to. */
import type { WaitingPolicy } from "../collectives/shared-memory.js";
import { RankError, reasonOf } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import { nativeAddon } from "../core/native-addon.js";

/** What one rank is told of its threads. Plain data. */
export interface RankThreads {
  readonly count: number;
  /** CPUs to keep to; null for any. */
  readonly cpus: readonly number[] | null;
  /** Whether thread i keeps to `cpus[i]` alone. */
  readonly each: boolean;
  /** NUMA node whose memory is taken first; null for whichever is nearest when memory is touched. */
  readonly node: number | null;
  /** How the rank waits for other ranks. */
  readonly waiting: WaitingPolicy;
  /** How its threads wait for each other, and helpers for work. */
  readonly helpersWaiting: WaitingPolicy;
}

/** The system's ids of the calling thread's helpers. */
export function helperIds(): readonly number[] {
  const native = nativeAddon();
  return native.loaded ? native.addon.helperIds() : [];
}

/**
 * Gives the calling thread its helpers and its place, before it takes any memory that is to lie near. Without the addon
 * it stays alone. Throws RankError `THREADS_UNAVAILABLE` when the system refuses threads. A place that it refuses is a
 * loss of speed only, and logged.
 */
export function applyThreads(threads: RankThreads, logger: Logger): void {
  const native = nativeAddon();
  if (!native.loaded) return;
  const { count, cpus, each, node, helpersWaiting: waiting } = threads;
  try {
    native.addon.setThreads(count, waiting.spinMicros, waiting.yieldMicros);
  } catch (error) {
    const reason = reasonOf(error);
    throw new RankError(
      "THREADS_UNAVAILABLE",
      `expected ${count} threads a rank but the system has no more: ${reason}`,
      { expected: count },
      { cause: error },
    );
  }
  if (cpus === null) return;
  const list = new Uint8Array(Int32Array.from(cpus).buffer);
  if (native.addon.placeThreads(list, each ? 1 : 0, node ?? -1)) return;
  logger.warn({ cpus, node }, "the system does not let threads keep to their CPUs: they may lose time to one another");
}
