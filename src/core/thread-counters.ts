/** What the system counts for the thread that asks, and for its helpers. Linux tells in /proc; elsewhere there is nothing to ask. */
import { readFileSync } from "node:fs";

/** Since the thread began, or between two times. Members that the system does not tell are absent. */
export interface ThreadCounters {
  /** Bytes that the thread got from read calls, whatever they came from (`rchar`). Mapped files are not in it. */
  readonly readBytes?: number;
  /**
   * Bytes that the thread had storage deliver (`read_bytes`), read-ahead included: those not in the page cache. What the
   * page cache already held, or another thread was reading, is not in it, nor what a file system without a block device
   * under it (tmpfs, most network and user-space ones) delivers.
   */
  readonly diskBytes?: number;
  /** Page faults that were served from memory, and that had to wait for storage. */
  readonly minorFaults?: number;
  readonly majorFaults?: number;
  /** Nanoseconds on a core, and ready to run without one. */
  readonly cpuNs?: number;
  readonly runQueueNs?: number;
}

const NAMES = ["readBytes", "diskBytes", "minorFaults", "majorFaults", "cpuNs", "runQueueNs"] as const;

/**
 * The counters of this thread; what helpers, by the system's ids, have read and the faults they had are counted with its own.
 * Time on a core is this thread's alone.
 */
export function readThreadCounters(helpers: readonly number[] = []): ThreadCounters {
  const own = "thread-self";
  const schedule = readOf(own, "schedstat").trim().split(" ");
  let memory = memoryOf(own);
  for (const id of helpers) memory = together(memory, memoryOf(`self/task/${id}`));
  return present({ ...memory, cpuNs: numberOf(schedule[0]), runQueueNs: numberOf(schedule[1]) });
}

type MemoryCounters = { readonly [Name in (typeof NAMES)[0 | 1 | 2 | 3]]: number | undefined };

function memoryOf(thread: string): MemoryCounters {
  const io = readOf(thread, "io");
  // The name of the thread, in parentheses, may hold anything.
  const stat = readOf(thread, "stat").replace(/^.*\)/s, "").trim().split(" ");
  return {
    readBytes: numberOf(/^rchar: (\d+)$/m.exec(io)?.[1]),
    diskBytes: numberOf(/^read_bytes: (\d+)$/m.exec(io)?.[1]),
    // Fields 10 and 12 of proc_pid_stat(5); the rest begins with field 3.
    minorFaults: numberOf(stat[7]),
    majorFaults: numberOf(stat[9]),
  };
}

/** What one of two does not tell is not told of both. */
function together(a: MemoryCounters, b: MemoryCounters): MemoryCounters {
  const sum = (x: number | undefined, y: number | undefined) =>
    x === undefined || y === undefined ? undefined : x + y;
  return {
    readBytes: sum(a.readBytes, b.readBytes),
    diskBytes: sum(a.diskBytes, b.diskBytes),
    minorFaults: sum(a.minorFaults, b.minorFaults),
    majorFaults: sum(a.majorFaults, b.majorFaults),
  };
}

/** What was counted between two times. */
export function countersBetween(before: ThreadCounters, after: ThreadCounters): ThreadCounters {
  return present(
    Object.fromEntries(
      NAMES.map((name) => {
        const [start, end] = [before[name], after[name]];
        return [name, start === undefined || end === undefined ? undefined : end - start];
      }),
    ),
  );
}

function present(counters: { readonly [Name in keyof ThreadCounters]: number | undefined }): ThreadCounters {
  return Object.fromEntries(Object.entries(counters).filter(([, value]) => value !== undefined));
}

function readOf(thread: string, file: string): string {
  try {
    return readFileSync(`/proc/${thread}/${file}`, "utf8");
  } catch {
    // Not Linux, or a sandbox that does not show it.
    return "";
  }
}

function numberOf(text: string | undefined): number | undefined {
  return text === undefined || !/^\d+$/.test(text) ? undefined : Number(text);
}
