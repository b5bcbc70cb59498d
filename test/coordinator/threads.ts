/** Keeps count of worker threads and of what else keeps a process alive. */
import { readdirSync, readFileSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
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

/** Threads of this process that share the kernels of ranks; 0 where the system does not list threads. */
export function helperThreads(): number {
  let ids: string[];
  try {
    ids = readdirSync("/proc/self/task");
  } catch {
    return 0;
  }
  const names = ids.map((id) => {
    try {
      return readFileSync(`/proc/self/task/${id}/comm`, "utf8").trim();
    } catch {
      return ""; // it has ended
    }
  });
  return names.filter((name) => name === "shardloom").length;
}

/**
 * Resolves when there are so many: a thread may get its name a moment after it starts, and the system may list it a moment
 * longer than somebody waited for its end.
 */
export async function helperThreadsAre(count: number): Promise<void> {
  while (helperThreads() !== count) await setImmediate();
}
