/**
 * A worker thread that was started before anybody knows what its rank is to load: it loads its code meanwhile. A rank takes
 * it over (rank-thread.ts), or it is ended.
 */
import { MessageChannel, type MessagePort, type ResourceLimits, Worker } from "node:worker_threads";
import { RankError, reasonOf } from "../core/errors.js";
import { threadEntry } from "../core/package-files.js";
import { threadOptions } from "../core/thread-options.js";
import type { RankWorkerData } from "../rank/rank-service.js";

/** What runs in the thread of a rank. */
export interface ThreadEntry {
  /** The file it begins with; it exposes a RankService. */
  readonly url: URL;
  /** What that file gets besides the control port. Plain data. */
  readonly data?: unknown;
  readonly resourceLimits?: ResourceLimits;
}

/** What runs in production. */
export const RANK_ENTRY: ThreadEntry = { url: threadEntry("rank") };

export class StartedThread {
  readonly rank: number;
  readonly worker: Worker;
  /** A port of its own: what a plugin does with the thread's parentPort cannot get in the way. */
  readonly control: MessagePort;
  /** What the thread died of, where it died of an uncaught exception; its exit follows. */
  uncaught: unknown;
  readonly #exit: Promise<number>;
  /** The thread and its port end apart, and both can hold the process. */
  readonly #gone: Promise<unknown>;

  /** Starts the thread. Throws RankError `RANK_START_FAILED` when the system refuses it. */
  constructor(rank: number, entry: ThreadEntry, plugins: readonly string[]) {
    this.rank = rank;
    const { port1, port2 } = new MessageChannel();
    this.control = port1;
    this.worker = startWorker(rank, entry, { control: port2, plugins, data: entry.data });
    this.worker.on("error", (error) => {
      this.uncaught = error;
    });
    const closed = new Promise<void>((resolve) => this.control.on("close", resolve));
    this.#exit = new Promise((resolve) => this.worker.on("exit", resolve));
    this.#gone = Promise.all([this.#exit.then(() => this.control.close()), closed]);
  }

  /** Has `listener` called when the thread has ended. */
  onExit(listener: (exitCode: number) => void): void {
    void this.#exit.then(listener);
  }

  /** Has `listener` called when nothing of the thread is left, after those of `onExit`. */
  onGone(listener: () => void): void {
    void this.#gone.then(listener);
  }

  /** Ends the thread, wherever it is, and resolves when nothing of it is left; may be called of one that has ended. */
  async end(): Promise<void> {
    await this.worker.terminate();
    await this.#gone;
  }
}

/** One thread a rank, or, if the system refuses one, none: throws RankError `RANK_START_FAILED`. */
export async function startThreads(
  ranks: number,
  entry: ThreadEntry,
  plugins: readonly string[],
): Promise<readonly StartedThread[]> {
  const threads: StartedThread[] = [];
  try {
    for (let rank = 0; rank < ranks; rank++) threads.push(new StartedThread(rank, entry, plugins));
    return threads;
  } catch (error) {
    await endThreads(threads);
    throw error;
  }
}

export async function endThreads(threads: readonly StartedThread[]): Promise<void> {
  await Promise.all(threads.map((thread) => thread.end()));
}

function startWorker(rank: number, { url, resourceLimits }: ThreadEntry, workerData: RankWorkerData): Worker {
  const { control } = workerData;
  try {
    return new Worker(url, {
      name: `shardloom rank ${rank}`,
      workerData,
      transferList: [control],
      ...threadOptions(),
      ...(resourceLimits === undefined ? {} : { resourceLimits }),
    });
  } catch (error) {
    control.close();
    const message = reasonOf(error);
    throw new RankError("RANK_START_FAILED", `cannot start rank ${rank}: ${message}`, { rank }, { cause: error });
  }
}
