/**
 * The thread of a rank without a model: a step meets the other ranks twice and doubles a number. The model path is a
 * JSON array of faults. Everything else is what a real rank runs.
 */
import { spawnSync } from "node:child_process";
import { createSharedMemoryCollective } from "../../src/collectives/shared-memory.js";
import { singleRank } from "../../src/collectives/single.js";
import { CheckpointError, InternalError } from "../../src/core/errors.js";
import { threadEffects } from "../../src/rank/faulty-program.js";
import { exposeRank } from "../../src/rank/rank-entry.js";
import type { LoadedRank, RankProgram } from "../../src/rank/rank-server.js";
import type { RankInit } from "../../src/rank/rank-service.js";
import { Step, type Steps, stepOf } from "../../src/rank/step.js";
import { FAULT_REACHED, type Fault } from "./fault.js";

/** A class that the coordinator's thread does not know. */
class PluginsOwnError extends CheckpointError {}

const barrier = { kind: "barrier" } as const;

function fail(what: Fault["what"], rank: number): Promise<never> {
  switch (what) {
    case "throw": {
      const details = { tensor: "model.norm.weight", expected: 2, received: 3, truncated: true };
      // A plugin in plain JavaScript may put there what no message can carry.
      Reflect.set(details, "hook", () => {});
      throw new PluginsOwnError("BROKEN_SHARD", `rank ${rank}: expected 2 shards but received 3`, details);
    }
    case "throw-plain":
      throw new TypeError("weights is not iterable");
    case "another-file":
      throw new InternalError("files are opened while a rank loads");
    case "exit":
      return threadEffects.exit(7);
    case "uncaught":
      return new Promise(() => {
        setImmediate(() => {
          throw new RangeError("nobody catches this");
        });
      });
    case "exhaust":
      return threadEffects.exhaustHeap();
    case "hang":
      for (;;) Math.random();
    case "stuck":
      spawnSync(process.execPath, ["-e", "setTimeout(() => {}, 1500)"]);
      throw new InternalError("the stuck rank came back");
  }
}

const fakeProgram: RankProgram = {
  async load(init, onProgress): Promise<LoadedRank> {
    const { rank } = init;
    const faults: readonly Fault[] = JSON.parse(init.options.path);
    const mine = faults.filter((fault) => fault.rank === rank);
    onProgress(2 ** 33 + rank);
    console.log(`fake rank ${rank} prints to stdout`);
    const onLoad = mine.find((fault) => fault.at === "load");
    if (onLoad?.what === "another-file") return loadedRank(init, mine, "2");
    if (onLoad !== undefined) await fail(onLoad.what, rank);
    return loadedRank(init, mine, "1");
  },
};

function loadedRank(init: RankInit, faults: readonly Fault[], version: string): LoadedRank {
  const { rank, region, collectiveTimeoutMs: timeoutMs } = init;
  const collective = region === null ? singleRank : createSharedMemoryCollective(region, rank, { timeoutMs });
  const [first, ...others] = init.steps;
  const arrays: Steps = [Step.from(first), ...others.map((handle) => Step.from(handle))];
  const { resultIds: signals } = arrays[0].views;
  let steps = 0;
  return {
    report: {
      rank,
      loadMs: 1,
      bytesRead: 2,
      parameterBytes: 3,
      kvCacheBytes: 4,
      verifyMs: 0,
      files: [{ path: "model.safetensors", version }],
    },
    runStep: (n) => {
      const { tokenIds, resultIds } = stepOf(arrays, n).views;
      steps++;
      const fault = faults.find(({ at }) => at === steps);
      collective.execute(barrier);
      if (fault !== undefined) {
        Atomics.store(signals, FAULT_REACHED, 1);
        void fail(fault.what, rank);
      }
      // Every rank must see what was written before the step was posted.
      if (tokenIds[0] !== steps) throw new InternalError(`step ${steps} of rank ${rank} sees ${tokenIds[0]}`);
      if (rank === 0) resultIds[0] = 2 * steps;
      collective.execute(barrier);
    },
    abort: () => collective.abort(),
  };
}

exposeRank(fakeProgram);
