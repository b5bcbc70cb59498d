/** How many ranks a model gets where the user leaves it to us: decided by the machine's memory nodes and the model's heads. */
import type { MachineMemory } from "../core/machine-memory.js";
import { coresOf, type MachineTopology } from "../core/machine-topology.js";

export interface WorldSizeChoice {
  readonly worldSize: number;
  /** Why, in words. */
  readonly reason: string;
}

/**
 * A rank for each NUMA node, so that each reads its weights from the memory beside its cores; cores of one node share a
 * rank's kernels, which costs less than an exchange between ranks. A node without memory of its own gets none. Never more
 * ranks than KV heads: those would be held twice.
 */
export function chooseWorldSize(
  topology: MachineTopology,
  memory: Pick<MachineMemory, "nodes">,
  kvHeads: number,
): WorldSizeChoice {
  const cores = coresOf(topology);
  const ids = new Set(cores.flatMap(([cpu]) => (cpu === undefined ? [] : [cpu.node])));
  const without = memory.nodes.filter(({ id, totalBytes }) => totalBytes === 0 && ids.has(id)).length;
  const nodes = ids.size - (without < ids.size ? without : 0);
  const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;
  const place = without > 0 ? `${counted(nodes, "NUMA node")} with memory` : counted(nodes, "NUMA node");
  const has = `${counted(cores.length, "core")} in ${place}`;
  if (!topology.known) return { worldSize: 1, reason: "this system does not say which NUMA nodes there are" };
  if (nodes <= 1) return { worldSize: 1, reason: `${has}: one rank, whose kernels all cores share` };
  if (nodes <= kvHeads) return { worldSize: nodes, reason: `${has}: a rank for each node` };
  return { worldSize: kvHeads, reason: `${has}, but ${kvHeads} KV heads: with more ranks some would be held twice` };
}
