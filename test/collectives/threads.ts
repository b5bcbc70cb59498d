/** Runs scripts of collectives on real worker threads. Threads are gone when the promise settles, however it does. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { CollectiveRegion } from "../../src/collectives/region.js";
import { abortRegion, type WaitingPolicy } from "../../src/collectives/shared-memory.js";
import { fromTransferable, InternalError, type ShardloomError, type TransferableError } from "../../src/core/errors.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import type { Step } from "./script.js";

export type EngineName = "native" | "typescript";

export interface ThreadOptions {
  readonly region: CollectiveRegion;
  readonly engine: EngineName;
  /** The script of each rank that takes part; a rank without one never arrives. */
  readonly scripts: readonly (readonly Step[] | undefined)[];
  readonly timeoutMs?: number;
  /** Meet in a barrier with a long deadline first, so that `timeoutMs` need not cover the start of threads. */
  readonly meetFirst?: boolean;
  readonly waiting?: WaitingPolicy;
  /** This rank calls `abort` as soon as all others wait. */
  readonly abortingRank?: number;
}

/** What the main thread gives a worker. */
export interface ThreadTask {
  readonly region: CollectiveRegion;
  readonly rank: number;
  readonly native: boolean;
  readonly script: readonly Step[];
  readonly timeoutMs: number;
  readonly meetFirst: boolean;
  readonly waiting: WaitingPolicy | undefined;
  readonly aborts: boolean;
}

/** What it gets back: the bits that each step left, or the error that ended the script and the one of one more call. */
export type ThreadReport =
  | { readonly ok: true; readonly results: readonly Int32Array[] }
  | { readonly ok: false; readonly error: TransferableError; readonly again: TransferableError };

export interface Outcome {
  readonly rank: number;
  readonly results: readonly Int32Array[];
  readonly error: ShardloomError | undefined;
  /** What a second call threw. */
  readonly again: ShardloomError | undefined;
}

/** A test in which a wait takes this long has failed, with COLLECTIVE_TIMEOUT. */
export const LONG_TIMEOUT_MS = 60_000;

/** Engines of this build. The addon is missing where there was no compiler. */
export const engines: readonly EngineName[] = nativeAddon().loaded ? ["native", "typescript"] : ["typescript"];

/** Starts a thread for every rank that has a script. `onStart` runs when all have been started. */
export async function runThreads(options: ThreadOptions, onStart?: () => Promise<void>): Promise<Outcome[]> {
  const workers: Worker[] = [];
  try {
    const outcomes = options.scripts.flatMap((script, rank) => {
      if (script === undefined) return [];
      const worker = startWorker(options, script, rank);
      workers.push(worker);
      return [outcomeOf(worker, rank)];
    });
    const [results] = await Promise.all([Promise.all(outcomes), onStart?.()]);
    return results;
  } catch (error) {
    // A thread that waits in the addon cannot be terminated before it returns.
    abortRegion(options.region);
    throw error;
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

function startWorker(options: ThreadOptions, script: readonly Step[], rank: number): Worker {
  const { region, engine, timeoutMs = LONG_TIMEOUT_MS, meetFirst = false, waiting } = options;
  const aborts = options.abortingRank === rank;
  const native = engine === "native";
  const task: ThreadTask = { region, rank, native, script, timeoutMs, meetFirst, waiting, aborts };
  return new Worker(new URL("./rank-thread.js", import.meta.url), { workerData: task });
}

async function outcomeOf(worker: Worker, rank: number): Promise<Outcome> {
  const exited = once(worker, "exit").then(() => {
    throw new InternalError(`the thread of rank ${rank} ended without a report`);
  });
  // It rejects when the thread ends after its report as well, when nobody waits for it any more.
  exited.catch(() => {});
  const message = await Promise.race([once(worker, "message"), exited]);
  const report: ThreadReport = message[0];
  if (report.ok) return { rank, results: report.results, error: undefined, again: undefined };
  return { rank, results: [], error: fromTransferable(report.error), again: fromTransferable(report.again) };
}
