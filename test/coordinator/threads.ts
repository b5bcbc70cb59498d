/** Keeps count of worker threads and of what else keeps a process alive. */
import type { Worker } from "node:worker_threads";

/** Threads started since `watchThreads`, and how many of them have not ended. */
export interface ThreadCount {
  started: number;
  alive: number;
  stop(): void;
}

export function watchThreads(): ThreadCount {
  const onWorker = (worker: Worker): void => {
    count.started++;
    count.alive++;
    worker.once("exit", () => {
      count.alive--;
    });
  };
  const count: ThreadCount = { started: 0, alive: 0, stop: () => process.off("worker", onWorker) };
  process.on("worker", onWorker);
  return count;
}

/** Threads, ports and timers that keep this process alive. */
export function heldResources(): string[] {
  const kinds = ["MessagePort", "Timeout", "Immediate", "Worker"];
  return process.getActiveResourcesInfo().filter((kind) => kinds.some((held) => kind.includes(held)));
}
