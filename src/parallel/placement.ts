/**
 * Which threads a group of ranks gets, and where they run. Pure: from the CPUs of a machine and the wishes of a user to a
 * placement, which others carry out.
 */
import { describeValue, OptionError } from "../core/errors.js";
import { coresOf, type MachineCpu, type MachineTopology } from "../core/machine-topology.js";

/** The most threads that a rank may have. */
export const MAX_THREADS_PER_RANK = 1024;

export interface PlacementRequest {
  readonly ranks: number;
  /** Threads of each rank; "auto" shares the cores among the ranks. */
  readonly threadsPerRank: number | "auto";
  /**
   * Whether threads are tied to CPUs. By default they are where the group uses the whole machine: threads that the system
   * puts on one core lose half their speed. Where it does not, other programs may be on the very CPUs it would take, so
   * then only with `true`, if the threads fit.
   */
  readonly pinning?: boolean | undefined;
  /** Whether another group of this process is tied to CPUs already; then this one is not. */
  readonly occupied?: boolean | undefined;
}

/** Where a rank runs. */
export interface RankPlace {
  /** CPUs it keeps to; null for any. */
  readonly cpus: readonly number[] | null;
  /** The node whose memory it prefers; null where there is one only, or where its CPUs are of several. */
  readonly node: number | null;
}

export interface Placement {
  readonly threadsPerRank: number;
  /** Cores whose time the process gets, at least one: whole ones, under a quota too. */
  readonly cores: number;
  /** The same in CPUs, of which a core may have several. With more threads, one that waits must let others run. */
  readonly cpus: number;
  /** "threads": thread i of a rank keeps to `cpus[i]`. "nodes": every thread of a rank keeps to all of `cpus`. */
  readonly pinning: "threads" | "nodes" | "none";
  /** Why it is pinned like this, in words. */
  readonly reason: string;
  readonly places: readonly RankPlace[];
}

/** Throws OptionError `INVALID_OPTION` for what is neither "auto" nor a number of threads. */
export function checkThreadsPerRank(value: unknown, option = "threadsPerRank"): number | "auto" {
  if (value === "auto") return value;
  const whole = typeof value === "number" && Number.isInteger(value);
  if (whole && value >= 1 && value <= MAX_THREADS_PER_RANK) return value;
  const expected = `"auto" or a whole number from 1 to ${MAX_THREADS_PER_RANK}`;
  throw new OptionError("INVALID_OPTION", `expected ${option} to be ${expected} but received ${describeValue(value)}`, {
    option,
    expected,
    received: String(value),
  });
}

export function placeRanks(topology: MachineTopology, request: PlacementRequest): Placement {
  const { ranks } = request;
  const cores = coresOf(topology);
  const limit = topology.quota ?? Number.POSITIVE_INFINITY;
  const usableCores = Math.max(1, Math.floor(Math.min(cores.length, limit)));
  const shared = Math.max(1, Math.floor(usableCores / ranks));
  const threadsPerRank =
    request.threadsPerRank === "auto" ? Math.min(shared, MAX_THREADS_PER_RANK) : request.threadsPerRank;
  const threads = ranks * threadsPerRank;
  const cpus = Math.min(topology.cpus.length, limit);
  const size: GroupSize = { ranks, threadsPerRank, usableCores, oversubscribed: threads > cpus };
  const [pinning, reason] = choosePinning(topology, request, size);
  const places = pinning === "none" ? anywhere(ranks) : placesOf(topology, size, pinning);
  return { threadsPerRank, cores: usableCores, cpus, pinning, reason, places };
}

interface GroupSize {
  readonly ranks: number;
  readonly threadsPerRank: number;
  readonly usableCores: number;
  readonly oversubscribed: boolean;
}

function choosePinning(
  topology: MachineTopology,
  { pinning, occupied = false }: PlacementRequest,
  { ranks, threadsPerRank, usableCores, oversubscribed }: GroupSize,
): readonly [Placement["pinning"], string] {
  if (pinning === false) return ["none", "pinning is off"];
  if (!topology.known) return ["none", "this system does not say which CPUs there are"];
  if (oversubscribed) return ["none", "there are more threads than CPUs"];
  if (occupied) return ["none", "another group of ranks in this process is pinned"];
  if (pinning === true) return ["threads", "pinning is on"];
  if (topology.quota !== null && topology.quota < topology.cpus.length) {
    return ["none", "the CPUs are shared with other processes under a quota"];
  }
  if ((threadsPerRank + 1) * ranks > usableCores) return ["threads", "the ranks use the whole machine"];
  if (new Set(topology.cpus.map(({ node }) => node)).size > 1) return ["nodes", "there are cores to spare"];
  return ["none", "there are cores to spare"];
}

function anywhere(ranks: number): readonly RankPlace[] {
  return Array.from({ length: ranks }, () => ({ cpus: null, node: null }));
}

/**
 * Gives every rank CPUs of one node as long as a node has enough of them: rank 0 of the first node, the last rank of the
 * last one, neighbours together. A rank that fits into no node takes what is left, in order.
 */
function placesOf(topology: MachineTopology, size: GroupSize, pinning: "threads" | "nodes"): readonly RankPlace[] {
  const nodes = freeByNode(topology, size);
  const several = nodes.length > 1;
  return Array.from({ length: size.ranks }, (_, rank): RankPlace => {
    const preferred = nodes[Math.floor((rank * nodes.length) / size.ranks)];
    const fits = [preferred, ...nodes].find((node) => node !== undefined && node.free.length >= size.threadsPerRank);
    if (fits === undefined) return { cpus: takeAcross(nodes, size.threadsPerRank), node: null };
    const own = fits.free.splice(0, size.threadsPerRank);
    return { cpus: pinning === "nodes" ? fits.cpus : own, node: several ? fits.id : null };
  });
}

interface NodeCpus {
  readonly id: number;
  readonly cpus: readonly number[];
  /** CPUs that no rank has yet, in the order to take them in. */
  readonly free: number[];
}

/** One CPU of every core where that is enough for all threads, otherwise all CPUs, those of a core side by side. */
function freeByNode(topology: MachineTopology, { ranks, threadsPerRank }: GroupSize): readonly NodeCpus[] {
  const cores = coresOf(topology);
  const enough = ranks * threadsPerRank <= cores.length;
  const nodes = new Map<number, NodeCpus>();
  const nodeOf = ({ node: id }: MachineCpu): NodeCpus => {
    const cpus = topology.cpus.filter(({ node }) => node === id).map((cpu) => cpu.id);
    const node = nodes.get(id) ?? { id, cpus, free: [] };
    nodes.set(id, node);
    return node;
  };
  for (const core of cores) {
    for (const cpu of enough ? core.slice(0, 1) : core) nodeOf(cpu).free.push(cpu.id);
  }
  return [...nodes.values()];
}

function takeAcross(nodes: readonly NodeCpus[], count: number): readonly number[] {
  const taken: number[] = [];
  for (const { free } of nodes) taken.push(...free.splice(0, count - taken.length));
  return taken;
}
