/** Which CPUs this process may use, how they belong together, and how much of their time it gets. */
import { availableParallelism } from "node:os";
import { cgroupFolders, fieldOf, parseIds, systemNames, systemText } from "./system-files.js";

/** A CPU is what the system schedules threads on; a core may have several of them, which share its units. */
export interface MachineCpu {
  readonly id: number;
  /** Names the core; of no meaning beyond that. */
  readonly core: string;
  /** NUMA node: the memory it is nearest to. */
  readonly node: number;
}

export interface MachineTopology {
  /** CPUs that this process may use, by id. At least one. */
  readonly cpus: readonly MachineCpu[];
  /** CPUs whose time all processes of this one's control group get together; null for all. May be a fraction. */
  readonly quota: number | null;
  /** Whether the system told, so that threads can be placed. Otherwise the ids are made up: one core a CPU, one node. */
  readonly known: boolean;
}

/** What to read: for tests, another folder than / and another count where nothing is told. */
export interface TopologySource {
  readonly root?: string;
  readonly parallelism?: number;
}

/** Reads the topology from /proc and /sys. Systems without them have as many CPUs as Node.js says. */
export function readTopology({
  root = "/",
  parallelism = availableParallelism(),
}: TopologySource = {}): MachineTopology {
  const quota = readQuota(root);
  const ids = allowedCpus(root);
  if (ids === null) {
    const cpus = Array.from({ length: Math.max(1, parallelism) }, (_, id) => ({ id, core: `${id}`, node: 0 }));
    return { cpus, quota, known: false };
  }
  const nodes = nodesByCpu(root);
  return {
    cpus: ids.map((id) => ({ id, core: coreOf(root, id), node: nodes.get(id) ?? 0 })),
    quota,
    known: true,
  };
}

/** Cores that the process may use, by the node they belong to; each with its CPUs. */
export function coresOf({ cpus }: MachineTopology): readonly (readonly MachineCpu[])[] {
  const cores = new Map<string, MachineCpu[]>();
  for (const cpu of cpus) {
    const core = cores.get(cpu.core);
    if (core === undefined) cores.set(cpu.core, [cpu]);
    else core.push(cpu);
  }
  return [...cores.values()].sort(([a], [b]) => (a?.node ?? 0) - (b?.node ?? 0));
}

function allowedCpus(root: string): readonly number[] | null {
  const allowed = parseIds(fieldOf(systemText(root, "proc/self/status"), "Cpus_allowed_list"));
  if (allowed === null) return null;
  const online = parseIds(systemText(root, "sys/devices/system/cpu/online"));
  const usable = online === null ? allowed : allowed.filter((id) => online.includes(id));
  return usable.length === 0 ? null : usable;
}

function coreOf(root: string, cpu: number): string {
  // Not core_id: it counts within a socket, on some makes within a die, and virtual machines may leave it 0.
  const siblings = parseIds(systemText(root, `sys/devices/system/cpu/cpu${cpu}/topology/thread_siblings_list`));
  return siblings === null ? `${cpu}` : siblings.join(" ");
}

function nodesByCpu(root: string): ReadonlyMap<number, number> {
  const nodes = new Map<number, number>();
  for (const name of systemNames(root, "sys/devices/system/node")) {
    const [, id] = /^node(\d+)$/.exec(name) ?? [];
    if (id === undefined) continue;
    for (const cpu of parseIds(systemText(root, "sys/devices/system/node", name, "cpulist")) ?? []) {
      nodes.set(cpu, Number(id));
    }
  }
  return nodes;
}

/** The least of the quotas of the control group and of those it is in. */
function readQuota(root: string): number | null {
  const quotas = cgroupFolders(root, "cpu").flatMap((folder) => {
    const [quota = "", period = ""] = systemText(root, folder, "cpu.max")?.split(" ") ?? [
      systemText(root, folder, "cpu.cfs_quota_us") ?? "",
      systemText(root, folder, "cpu.cfs_period_us") ?? "",
    ];
    const cpus = Number(quota) / Number(period);
    return quota !== "" && period !== "" && Number.isFinite(cpus) && cpus > 0 ? [cpus] : [];
  });
  return quotas.length === 0 ? null : Math.min(...quotas);
}
