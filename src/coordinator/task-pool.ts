/** Threads that carry out tasks, one at a time each. */
import type { Piscina } from "piscina";
import { fromTransferable, RequestError, reasonOf, ShardloomError, type TransferableError } from "../core/errors.js";
import { threadOptions } from "../core/thread-options.js";

/** What came of a task. Errors are values: a thread pool's own would lose their class, code and fields. */
export type TaskOutcome<Result> =
  | { readonly ok: true; readonly result: Result }
  | { readonly ok: false; readonly error: TransferableError };

/** Where the threads of a pool begin. */
export interface TaskWorker {
  /** URL of the file. */
  readonly filename: string;
  /** The function it exports: it takes a task and returns the promise of a TaskOutcome. */
  readonly name: string;
  /** `workerData` of the threads: plain data. */
  readonly setup: unknown;
  /** What is being done, for errors: "quantizing". */
  readonly activity: string;
}

export interface TaskPoolOptions<Task, Result> {
  readonly worker: TaskWorker;
  readonly threads: number;
  /** Called when a task is done, with what it returned. */
  readonly done: (task: Task, result: Result) => void;
  /** Ends all threads when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Carries out tasks in parallel and returns when all are done; after a failure, when no thread is left that could still
 * write. Throws the error of the first task that failed, RequestError `CANCELLED`, or ShardloomError `TASK_FAILED` when a thread
 * ends by itself.
 */
export async function runTasks<Task, Result>(
  tasks: readonly Task[],
  { worker, threads, done, signal }: TaskPoolOptions<Task, Result>,
): Promise<void> {
  const { filename, name, setup, activity } = worker;
  throwIfCancelled(signal, activity);
  const count = Math.max(1, Math.min(threads, tasks.length));
  // Loaded here because commands that run a model have no use for it.
  const { Piscina } = await import("piscina");
  const pool = new Piscina<Task, TaskOutcome<Result>>({
    filename,
    name,
    workerData: setup,
    minThreads: count,
    maxThreads: count,
    ...threadOptions(),
  });
  const run = async (task: Task): Promise<void> => {
    const outcome = await pool.run(task);
    if (!outcome.ok) throw fromTransferable(outcome.error);
    done(task, outcome.result);
  };
  const cancellation = new AbortController();
  try {
    await Promise.race([Promise.all(tasks.map(run)), failureOf(pool, activity, signal, cancellation.signal)]);
  } catch (error) {
    throw error instanceof ShardloomError ? error : threadFailed(error, activity);
  } finally {
    cancellation.abort();
    await pool.destroy();
  }
}

/** Throws RequestError `CANCELLED` when a signal is aborted. */
export function throwIfCancelled(signal: AbortSignal | undefined, activity: string): void {
  if (signal?.aborted === true) throw cancelled(signal, activity);
}

/** Rejects when the signal is aborted, or when a thread fails outside of a task. Listens until `settled` is aborted. */
function failureOf(
  pool: Piscina,
  activity: string,
  signal: AbortSignal | undefined,
  settled: AbortSignal,
): Promise<never> {
  return new Promise((_, reject) => {
    pool.on("error", reject);
    signal?.addEventListener("abort", () => reject(cancelled(signal, activity)), { signal: settled });
  });
}

function cancelled(signal: AbortSignal, activity: string): RequestError {
  return new RequestError("CANCELLED", `${activity} was cancelled`, {}, { cause: signal.reason });
}

function threadFailed(cause: unknown, activity: string): ShardloomError {
  const reason = reasonOf(cause);
  return new ShardloomError("TASK_FAILED", `a thread ended by itself while ${activity}: ${reason}`, {}, { cause });
}
