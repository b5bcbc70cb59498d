/** How many ranks a model gets where the user leaves it to us: decided by the machine's memory nodes and the model's heads. */
import { coresOf, type MachineTopology } from "../core/machine-topology.js";

export interface WorldSizeChoice {
  readonly worldSize: number;
  /** Why, in words. */
  readonly reason: string;
}

/**
 * A rank for each NUMA node, so that each reads its weights from the memory beside its cores; cores of one node share a
 * rank's kernels, which costs less than an exchange between ranks. Never more ranks than KV heads: those would be held twice.
 */
export function chooseWorldSize(topology: MachineTopology, kvHeads: number): WorldSizeChoice {
  const cores = coresOf(topology);
  const nodes = new Set(cores.flatMap(([cpu]) => (cpu === undefined ? [] : [cpu.node]))).size;
  const has = `${cores.length} core${cores.length === 1 ? "" : "s"} in ${nodes} NUMA node${nodes === 1 ? "" : "s"}`;
  if (!topology.known) return { worldSize: 1, reason: "this system does not say which NUMA nodes there are" };
  if (nodes <= 1) return { worldSize: 1, reason: `${has}: one rank, whose kernels all cores share` };
  if (nodes <= kvHeads) return { worldSize: nodes, reason: `${has}: a rank for each node` };
  return { worldSize: kvHeads, reason: `${has}, but ${kvHeads} KV heads: with more ranks some would be held twice` };
}
