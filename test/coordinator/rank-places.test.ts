import assert from "node:assert/strict";
import { placeGroup } from "../../src/coordinator/rank-places.js";
import type { MachineTopology } from "../../src/core/machine-topology.js";

/** Four cores of one CPU each. */
const topology: MachineTopology = {
  cpus: [0, 1, 2, 3].map((id) => ({ id, core: `${id}`, node: 0 })),
  quota: null,
  known: true,
};

describe("the threads of a group of ranks", () => {
  it("are told how many they are, where each runs, and to spin while every one has a CPU", () => {
    const group = placeGroup(2, { topology });
    try {
      assert.deepEqual(
        group.threads.map(({ count, cpus, each }) => ({ count, cpus, each })),
        [
          { count: 2, cpus: [0, 1], each: true },
          { count: 2, cpus: [2, 3], each: true },
        ],
      );
      for (const { waiting, helpersWaiting } of group.threads) {
        assert.ok(waiting.spinMicros > 0 && helpersWaiting.spinMicros > 0);
      }
    } finally {
      group.release();
    }
  });

  it("keep no other from running when they are more than the CPUs", () => {
    const group = placeGroup(2, { topology, threadsPerRank: 3 });
    for (const { waiting, helpersWaiting, cpus } of group.threads) {
      assert.equal(cpus, null);
      assert.deepEqual([waiting.spinMicros, helpersWaiting.spinMicros], [0, 0]);
    }
    group.release();
  });

  it("are not pinned to the CPUs of another group of the process, until that one has ended", () => {
    const pinningOf = (): string => {
      const group = placeGroup(1, { topology });
      group.release();
      return group.placement.pinning;
    };
    const first = placeGroup(1, { topology });
    assert.equal(first.placement.pinning, "threads");
    assert.equal(pinningOf(), "none");
    // The end of a group that was not pinned frees nothing.
    assert.equal(pinningOf(), "none");
    first.release();
    assert.equal(pinningOf(), "threads");
  });
});
