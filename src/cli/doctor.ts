/** `shardloom doctor`: what this machine is, what shardloom makes of it, and why. */
import { arch, cpus, platform, release } from "node:os";
import type { Command } from "commander";
import { type MachineMemory, readMemory } from "../core/machine-memory.js";
import { coresOf, type MachineTopology, readTopology } from "../core/machine-topology.js";
import { nativeAddon } from "../core/native-addon.js";
import { type MachineLimits, measureLimits } from "../kernels/probe.js";
import { type KernelSelection, kernelSelection } from "../kernels/selection.js";
import { type Placement, placeRanks } from "../parallel/placement.js";
import type { CommandContext } from "./context.js";
import { threadCount, worldSize } from "./option-values.js";
import { readPackageManifest } from "./package-manifest.js";
import { formatBytes } from "./quantities.js";

interface DoctorFlags {
  readonly tp: number;
  readonly threadsPerRank: number | "auto";
  readonly pinning: boolean;
  readonly probe: boolean;
  readonly json?: boolean;
}

/** Everything that the command reports. The shape of `--json`. */
export interface DoctorReport {
  readonly shardloom: string;
  readonly node: string;
  readonly system: string;
  readonly cpu: {
    readonly model: string;
    readonly features: readonly string[];
    readonly cores: number;
    readonly cpus: readonly number[];
    readonly quota: number | null;
    readonly nodes: readonly { readonly id: number; readonly cpus: readonly number[] }[];
  };
  readonly memory: MachineMemory;
  readonly addon: {
    readonly loaded: boolean;
    readonly path: string | null;
    readonly abi: number | null;
    /** Why it is not loaded. */
    readonly reason: string | null;
  };
  readonly kernels: KernelSelection;
  readonly placement: Placement & { readonly ranks: number };
  /** Null without the addon, and with --no-probe. */
  readonly limits: MachineLimits | null;
}

const EXPLANATION = `
Measures for about a second, unless --no-probe is given. Close what else computes: it makes figures smaller.

Example:
  shardloom doctor --tp 2`;

export function addDoctorCommand(program: Command, context: CommandContext): void {
  program
    .command("doctor")
    .description("say what this machine can do, and which kernels, threads and CPUs shardloom would use")
    .option("--tp <ranks>", "ranks to place", worldSize("--tp"), 1)
    .option(
      "--threads-per-rank <threads>",
      "threads of each rank; auto: the cores over the ranks",
      threadCount("--threads-per-rank"),
      "auto" as const,
    )
    .option("--no-pinning", "let threads run on any CPU")
    .option("--no-probe", "do not measure")
    .option("--json", "print one JSON object")
    .addHelpText("after", EXPLANATION)
    .action((flags: DoctorFlags) => runDoctor(flags, context));
}

async function runDoctor(flags: DoctorFlags, { stdout }: CommandContext): Promise<void> {
  const report = examine(flags);
  if (flags.json === true) await stdout.writeJson(report);
  else await stdout.write(`${linesOf(report).join("\n")}\n`);
}

function examine({ tp, threadsPerRank, pinning, probe }: DoctorFlags): DoctorReport {
  const topology = readTopology();
  const native = nativeAddon();
  const placement = placeRanks(topology, { ranks: tp, threadsPerRank, ...(pinning ? {} : { pinning: false }) });
  return {
    shardloom: readPackageManifest().version,
    node: process.version,
    system: `${platform()} ${release()} ${arch()}`,
    cpu: describeCpu(topology, native.loaded ? native.addon.cpuFeatures : []),
    memory: readMemory(),
    addon: native.loaded
      ? { loaded: true, path: native.path, abi: native.addon.abi, reason: null }
      : { loaded: false, path: null, abi: null, reason: native.reason },
    kernels: kernelSelection(),
    placement: { ranks: tp, ...placement },
    limits: probe ? measureLimits({ threads: placement.cores }) : null,
  };
}

function describeCpu(topology: MachineTopology, features: readonly string[]): DoctorReport["cpu"] {
  const nodes = new Map<number, number[]>();
  for (const { id, node } of topology.cpus) nodes.set(node, [...(nodes.get(node) ?? []), id]);
  return {
    model: cpus()[0]?.model.trim() || "unknown",
    features,
    cores: coresOf(topology).length,
    cpus: topology.cpus.map(({ id }) => id),
    quota: topology.quota,
    nodes: [...nodes].map(([id, ids]) => ({ id, cpus: ids })),
  };
}

function linesOf(report: DoctorReport): readonly string[] {
  const lines = [...machineOf(report), ...choicesOf(report), ...limitsOf(report)];
  const width = Math.max(...lines.map(([label]) => label.length));
  return lines.map(([label, value]) => `${label.padEnd(width)}  ${value}`);
}

type Line = readonly [label: string, value: string];

function machineOf({ shardloom, node, system, cpu, memory }: DoctorReport): readonly Line[] {
  const { model, features, cores, cpus: ids, quota, nodes } = cpu;
  const time = quota === null ? "" : `, quota of ${quota} CPUs' time`;
  const limit = memory.limitBytes === null ? "" : `, limit of the control group ${formatBytes(memory.limitBytes)}`;
  const pages = memory.hugePages === null ? "none, or not told" : `${memory.hugePages} (transparent)`;
  return [
    ["shardloom", `${shardloom}, Node.js ${node}, ${system}`],
    ["CPU", model],
    ["features", features.length === 0 ? "unknown without the addon" : features.join(" ")],
    ["cores", `${cores} for this process, CPUs ${idsText(ids)}${time}`],
    ...nodes.map(({ id, cpus: own }): Line => [`NUMA node ${id}`, `CPUs ${idsText(own)}`]),
    ["memory", `${formatBytes(memory.totalBytes)}, ${formatBytes(memory.availableBytes)} available${limit}`],
    ["huge pages", pages],
  ];
}

function choicesOf({ addon, kernels, placement }: DoctorReport): readonly Line[] {
  const { ranks, threadsPerRank, pinning, reason, places } = placement;
  const pinned = { threads: "each thread on a CPU of its own", nodes: "ranks on the CPUs of a node", none: "no" };
  return [
    ["addon", addon.loaded ? `${addon.path}, interface ${addon.abi}` : `not used: ${addon.reason}`],
    ["instruction sets", kernels.supported.length === 0 ? "none" : kernels.supported.join(", ")],
    ["kernels", `${kernels.isa ?? "reference (TypeScript, slow)"}: ${kernels.reason}`],
    ["threads", `${ranks} rank${ranks === 1 ? "" : "s"} of ${threadsPerRank}`],
    ["pinning", `${pinned[pinning]}: ${reason}`],
    ...places.flatMap(({ cpus: ids, node }, rank): readonly Line[] => {
      if (ids === null) return [];
      return [[`rank ${rank}`, `CPUs ${idsText(ids)}${node === null ? "" : `, memory of node ${node}`}`]];
    }),
  ];
}

function limitsOf({ limits }: DoctorReport): readonly Line[] {
  if (limits === null) return [];
  const { isa, threads, readGBs, fmaGflops, dotInt8Gops, dotBf16Gflops, exchange } = limits;
  const scaled = ({ one, all }: MachineLimits["readGBs"], unit: string): string =>
    `${one.toFixed(1)} ${unit} by one thread, ${all.toFixed(1)} by ${threads}`;
  const lines: Line[] = [
    ["memory read", scaled(readGBs, "GB/s")],
    ["f32 multiply-add", `${scaled(fmaGflops, "GFLOP/s")} (${isa})`],
    ["int8 dot product", `${scaled(dotInt8Gops, "GOP/s")} (${isa})`],
    ["bf16 dot product", dotBf16Gflops === null ? "none" : `${scaled(dotBf16Gflops, "GFLOP/s")} (${isa})`],
  ];
  if (exchange === null) return lines;
  const { cacheLineNs, wakeMicros, forkJoinMicros } = exchange;
  return [
    ...lines,
    ["between threads", `cache line ${cacheLineNs.toFixed(0)} ns, wake-up ${wakeMicros.toFixed(1)} us`],
    ["shared call", `${forkJoinMicros.toFixed(2)} us for ${threads} threads with nothing to do`],
  ];
}

/** Ids as Linux writes them: 0-3,8. */
function idsText(ids: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const id of ids) {
    const last = ranges.at(-1);
    if (last !== undefined && id === last[1] + 1) last[1] = id;
    else ranges.push([id, id]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
}
