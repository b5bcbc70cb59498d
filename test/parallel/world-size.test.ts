import assert from "node:assert/strict";
import type { MachineTopology } from "../../src/core/machine-topology.js";
import { chooseWorldSize } from "../../src/parallel/world-size.js";

/** So many nodes with so many cores of two CPUs each. */
function machine(nodes: number, cores: number): MachineTopology {
  const cpus = Array.from({ length: nodes * cores * 2 }, (_, id) => {
    const core = Math.floor(id / 2);
    return { id, core: `${core}`, node: Math.floor(core / cores) };
  });
  return { cpus, quota: null, known: true };
}

const UNTOLD = { nodes: [] };

describe("ranks, where they are left to us", () => {
  it("are one on a machine of one node, however many cores it has", () => {
    assert.deepEqual(chooseWorldSize(machine(1, 2), UNTOLD, 8), {
      worldSize: 1,
      reason: "2 cores in 1 NUMA node: one rank, whose kernels all cores share",
    });
    assert.equal(chooseWorldSize(machine(1, 64), UNTOLD, 8).worldSize, 1);
  });

  it("are one for each node", () => {
    assert.deepEqual(chooseWorldSize(machine(2, 64), UNTOLD, 8), {
      worldSize: 2,
      reason: "128 cores in 2 NUMA nodes: a rank for each node",
    });
  });

  it("are none for a node without memory of its own, whose cores have to read another's", () => {
    const nodes = [0, 1, 2, 3].map((id) => ({ id, totalBytes: id % 2 === 0 ? 64e9 : 0 }));
    assert.deepEqual(chooseWorldSize(machine(4, 8), { nodes }, 8), {
      worldSize: 2,
      reason: "32 cores in 2 NUMA nodes with memory: a rank for each node",
    });
  });

  it("are no more than KV heads, and one where nothing is known", () => {
    assert.deepEqual(chooseWorldSize(machine(8, 4), UNTOLD, 3), {
      worldSize: 3,
      reason: "32 cores in 8 NUMA nodes, but 3 KV heads: with more ranks some would be held twice",
    });
    assert.equal(chooseWorldSize({ ...machine(4, 4), known: false }, UNTOLD, 8).worldSize, 1);
  });
});
