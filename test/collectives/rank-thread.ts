/** The thread of one rank in tests: runs a script, reports what came of it. */
import { parentPort, workerData } from "node:worker_threads";
import { type Collective, drive } from "../../src/collectives/collective.js";
import { type CollectiveRegion, RANK_LINE, rankLine, wordsOf } from "../../src/collectives/region.js";
import { createSharedMemoryCollective } from "../../src/collectives/shared-memory.js";
import { toTransferable } from "../../src/core/errors.js";
import { scriptPass } from "./script.js";
import { LONG_TIMEOUT_MS, type ThreadReport, type ThreadTask } from "./threads.js";

const task: ThreadTask = workerData;
const { region, rank } = task;
if (task.meetFirst) attach(LONG_TIMEOUT_MS).execute({ kind: "barrier" });
const collective = attach(task.timeoutMs);

if (task.aborts) abortWhenOthersWait(collective, region);
parentPort?.postMessage(report());

function attach(timeoutMs: number): Collective {
  const { native, waiting } = task;
  return createSharedMemoryCollective(region, rank, {
    timeoutMs,
    native,
    ...(waiting === undefined ? {} : { waiting }),
  });
}

function report(): ThreadReport {
  try {
    return { ok: true, results: drive(scriptPass(task.script, rank, region.worldSize), collective) };
  } catch (error) {
    return { ok: false, error: toTransferable(error), again: toTransferable(errorOfNextCall()) };
  }
}

function errorOfNextCall(): unknown {
  try {
    collective.execute({ kind: "barrier" });
    return new Error("the call after an error succeeded");
  } catch (error) {
    return error;
  }
}

/** Polls, because the point is to be the one that does not arrive. */
function abortWhenOthersWait(self: Collective, { worldSize }: CollectiveRegion): void {
  const words = wordsOf(region);
  const others = Array.from({ length: worldSize }, (_, each) => each).filter((each) => each !== self.rank);
  while (!others.every((each) => Atomics.load(words, rankLine(each) + RANK_LINE.arrived) !== 0)) {
    Atomics.wait(words, rankLine(self.rank) + RANK_LINE.arrived, 0, 1);
  }
  self.abort();
}
