/** One rank of the test of shared reads: it acquires lists of items, one after another, and says what it found. */
import { parentPort, workerData } from "node:worker_threads";
import type { SharedItem } from "../../src/checkpoint/shared-reads.js";
import { type SharedReadsHandle, SharedReadsMemory } from "../../src/checkpoint/shared-reads-memory.js";

export interface ReadsTask {
  readonly handle: SharedReadsHandle;
  readonly rank: number;
  /** Items of each acquisition, by number. */
  readonly acquisitions: readonly (readonly number[])[];
  readonly takers: number;
  /** Items that fail on this rank. */
  readonly failing?: readonly number[];
  /** An item in the middle of which this rank ends. */
  readonly dyingAt?: number;
  readonly waitMs?: number;
}

export interface ReadsReport {
  readonly rank: number;
  /** Items that this rank made. */
  readonly made: readonly number[];
  /** Items whose bytes were wrong. */
  readonly wrong: readonly number[];
  /** Items that it was told of that they failed. */
  readonly failed: readonly string[];
}

/** An item's bytes: so many, all the same, and no other item's. */
export const sizeOfItem = (item: number): number => 1 + ((item * 7919) % 5000);

const task: ReadsTask = workerData;
const made: number[] = [];
const wrong: number[] = [];
const failed: string[] = [];
const { waitMs } = task;
const reads = new SharedReadsMemory(task.handle, waitMs === undefined ? {} : { waitMs });

function itemOf(item: number): SharedItem {
  return {
    key: `item ${item}`,
    sizeBytes: sizeOfItem(item),
    fill(destination) {
      if (task.dyingAt === item) process.exit(0);
      if (task.failing?.includes(item) === true) throw new Error(`item ${item}`);
      made.push(item);
      destination.fill(item % 251);
    },
  };
}

for (const items of task.acquisitions) {
  try {
    const pieces = reads.acquire(items.map(itemOf), task.takers);
    for (const [i, { bytes }] of pieces.entries()) {
      const item = items[i] ?? -1;
      if (bytes.length !== sizeOfItem(item) || bytes.some((byte) => byte !== item % 251)) wrong.push(item);
    }
    for (const piece of pieces) piece.release();
  } catch (error) {
    failed.push(error instanceof Error ? error.message : String(error));
  }
}
const report: ReadsReport = { rank: task.rank, made, wrong, failed };
parentPort?.postMessage(report);
