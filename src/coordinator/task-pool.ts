/** Threads that carry out the tasks of a checkpoint. */
import type { Piscina } from "piscina";
import { fromTransferable, RequestError, ShardloomError } from "../core/errors.js";
import type {
  CheckpointTask,
  CheckpointTaskOutcome,
  CheckpointTaskSetup,
  DeferredTensor,
} from "../loading/checkpoint-task.js";

const WORKER = new URL("../../workers/checkpoint-task.js", import.meta.url).href;

export interface TaskPoolOptions<Task extends CheckpointTask> {
  readonly setup: CheckpointTaskSetup;
  readonly threads: number;
  /** Called when a task is done, with the tensors that it did not write. */
  readonly done: (task: Task, deferred: readonly DeferredTensor[]) => void;
  /** Ends all threads when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Carries out tasks in parallel and returns when all are done; after a failure, when no thread is left that could still
 * write. Throws the error of the first task that failed, RequestError `CANCELLED`, or ShardloomError `TASK_FAILED` when a thread
 * ends by itself.
 */
export async function runTasks<Task extends CheckpointTask>(
  tasks: readonly Task[],
  { setup, threads, done, signal }: TaskPoolOptions<Task>,
): Promise<void> {
  throwIfCancelled(signal);
  const count = Math.max(1, Math.min(threads, tasks.length));
  // Loaded here because commands that run a model have no use for it.
  const { Piscina } = await import("piscina");
  const pool = new Piscina<CheckpointTask, CheckpointTaskOutcome>({
    filename: WORKER,
    name: "runCheckpointTask",
    workerData: setup,
    minThreads: count,
    maxThreads: count,
  });
  const run = async (task: Task): Promise<void> => {
    const outcome = await pool.run(task);
    if (!outcome.ok) throw fromTransferable(outcome.error);
    done(task, outcome.deferred);
  };
  const cancellation = new AbortController();
  try {
    await Promise.race([Promise.all(tasks.map(run)), failureOf(pool, signal, cancellation.signal)]);
  } catch (error) {
    throw error instanceof ShardloomError ? error : threadFailed(error);
  } finally {
    cancellation.abort();
    await pool.destroy();
  }
}

/** Throws RequestError `CANCELLED` when a signal is aborted. */
export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw cancelled(signal);
}

/** Rejects when the signal is aborted, or when a thread fails outside of a task. Listens until `settled` is aborted. */
function failureOf(pool: Piscina, signal: AbortSignal | undefined, settled: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    pool.on("error", reject);
    signal?.addEventListener("abort", () => reject(cancelled(signal)), { signal: settled });
  });
}

function cancelled(signal: AbortSignal): RequestError {
  return new RequestError("CANCELLED", "quantizing was cancelled", {}, { cause: signal.reason });
}

function threadFailed(cause: unknown): ShardloomError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new ShardloomError("TASK_FAILED", `a thread that quantizes ended by itself: ${reason}`, {}, { cause });
}
