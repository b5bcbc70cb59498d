/** The program of production on a rank that has faults, in a thread of its own: here they come true. */
import { ArenaAllocator } from "../core/arena.js";
import type { FaultSchedule } from "./faults.js";
import { createModelProgram } from "./model-program.js";
import { type FaultEffects, RankFaults } from "./rank-faults.js";
import type { RankProgram } from "./rank-server.js";

/** The longest wait at a time: none is unbounded, and a thread that waits can be terminated between two of them. */
const WAIT_SLICE_MS = 1000;

/** Faults of a thread happen to the thread itself. */
export const threadEffects: FaultEffects = {
  pause(durationMs) {
    const word = new Int32Array(new SharedArrayBuffer(4));
    const until = performance.now() + durationMs;
    for (let left = durationMs; left > 0; left = until - performance.now()) {
      Atomics.wait(word, 0, 0, Math.min(left, WAIT_SLICE_MS));
    }
  },
  exit: (exitCode) => process.exit(exitCode),
  exhaustHeap() {
    for (const hoard: number[][] = []; ; ) hoard.push(new Array<number>(100_000).fill(hoard.length + 0.5));
  },
};

/** What a rank does in production, until a fault of the schedule happens to it. */
export function createFaultyProgram(faults: FaultSchedule): RankProgram {
  return createModelProgram(({ rank }) => {
    const own = new RankFaults(faults, rank, threadEffects);
    return {
      collective: (sound) => own.collective(sound),
      checkpoint: (opened) => own.checkpoint(opened),
      allocator: own.allocator((name, chunkBytes) => new ArenaAllocator(name, chunkBytes)),
    };
  });
}
