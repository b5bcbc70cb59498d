/** The threads of a group of ranks: how many each gets and where they run, kept apart from other groups of this process. */
import { type WaitingPolicy, waitingPolicy } from "../collectives/shared-memory.js";
import { type MachineTopology, readTopology } from "../core/machine-topology.js";
import { checkThreadsPerRank, type Placement, placeRanks } from "../parallel/placement.js";
import type { RankThreads } from "../rank/rank-threads.js";

export interface ThreadOptions {
  /** Threads of each rank. By default, and with "auto", ranks share the cores. */
  readonly threadsPerRank?: number | "auto" | undefined;
  /** Whether threads keep to CPUs of their own; see PlacementRequest. */
  readonly pinning?: boolean | undefined;
  /** The machine: tests have others. */
  readonly topology?: MachineTopology | undefined;
}

export interface GroupPlaces {
  readonly placement: Placement;
  /** What each rank is told. */
  readonly threads: readonly RankThreads[];
  /** To be called when the group has ended: its CPUs are free again. */
  release(): void;
}

/**
 * Helpers spin for longer than it takes from one step to the next, once a pause; then they park. They never yield. With
 * another program on the core both cost a slice of its time, milliseconds, before the thread runs again.
 */
const SPIN_THEN_PARK: WaitingPolicy = { spinMicros: 500, yieldMicros: 0 };
const PARK_AT_ONCE: WaitingPolicy = { spinMicros: 0, yieldMicros: 0 };

/** Whether a group of this process keeps its threads to CPUs: a second one must not be put onto the same. */
let occupied = false;

/** Places a group, as placeRanks does, or throws OptionError `INVALID_OPTION`. Ranks on more threads than CPUs park where others spin. */
export function placeGroup(ranks: number, options: ThreadOptions): GroupPlaces {
  const { pinning, topology = readTopology() } = options;
  const threadsPerRank = checkThreadsPerRank(options.threadsPerRank ?? "auto");
  const placement = placeRanks(topology, { ranks, threadsPerRank, pinning, occupied });
  const pinned = placement.pinning !== "none";
  if (pinned) occupied = true;
  const total = ranks * placement.threadsPerRank;
  const waiting = waitingPolicy(total, placement.cpus);
  const helpersWaiting = total <= placement.cpus ? SPIN_THEN_PARK : PARK_AT_ONCE;
  return {
    placement,
    threads: placement.places.map(({ cpus, node }) => ({
      count: placement.threadsPerRank,
      cpus,
      each: placement.pinning === "threads",
      node,
      waiting,
      helpersWaiting,
    })),
    release: () => {
      if (pinned) occupied = false;
    },
  };
}
