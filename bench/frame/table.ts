/** Results as tables for people. */
import type { MachineLimits, Scaling } from "../../src/kernels/probe.js";
import type { Machine } from "./machine.js";
import type { BenchResult, ContestantResult, Row } from "./result.js";

/** All of a result, as it is printed. */
export function formatResult(result: BenchResult): string {
  const { bench, date, note, machine, limits, peers, rows } = result;
  const absent = peers.flatMap(({ name, absent }) => (absent === null ? [] : [`without ${name}: ${absent}`]));
  const present = peers.flatMap(({ name, version, absent }) =>
    absent === null ? [`${name} ${version ?? "of unknown version"}`] : [],
  );
  return [
    `${bench}, ${date}${note === "" ? "" : `: ${note}`}`,
    formatMachine(machine),
    formatLimits(limits),
    ...(present.length === 0 ? [] : [`peers: ${present.join(", ")}`]),
    ...absent,
    "",
    formatRows(rows),
  ].join("\n");
}

function formatMachine({ cpu, cpuModel, cpus, memoryBytes, system, node, kernels, load }: Machine): string {
  const model = cpuModel === null ? "" : ` (${cpuModel})`;
  const memory = `${Math.round(memoryBytes / 2 ** 30)} GiB`;
  return `${cpu}${model}, ${cpus} CPUs, ${memory}, ${system}, Node.js ${node}, kernels ${kernels}, load ${load.toFixed(1)}`;
}

function formatLimits(limits: MachineLimits | null): string {
  if (limits === null) return "limits: not measured without the addon";
  const { isa, threads, readGBs, fmaGflops, dotInt8Gops, dotBf16Gflops, exchange } = limits;
  const scaling = ({ one, all }: Scaling): string => `${number(one)} / ${number(all)}`;
  const bf16 = dotBf16Gflops === null ? "" : `, bf16 ${scaling(dotBf16Gflops)} GFLOP/s`;
  const line = exchange === null ? "" : `, cache line ${number(exchange.cacheLineNs)} ns`;
  return (
    `limits (1 / ${threads} threads, ${isa}): read ${scaling(readGBs)} GB/s, f32 ${scaling(fmaGflops)} GFLOP/s, ` +
    `int8 ${scaling(dotInt8Gops)} GOP/s${bf16}${line}`
  );
}

/** One line a contestant; a subject's columns are those of the first row. */
function formatRows(rows: readonly Row[]): string {
  const keys = [...new Set(rows.flatMap(({ subject }) => Object.keys(subject)))];
  const peers = [...new Set(rows.flatMap(({ ratios }) => ratios.map(({ peer }) => peer)))];
  const head = [...keys, "contestant", "median", "min", "max", "unit", "of limit", ...peers.map((name) => `/ ${name}`)];
  const lines = rows.flatMap((row) => row.contestants.map((contestant) => formatLine(row, contestant, keys, peers)));
  return align([head, ...lines]);
}

function formatLine(
  { subject, unit, ratios }: Row,
  { name, median, min, max, limit }: ContestantResult,
  keys: readonly string[],
  peers: readonly string[],
): string[] {
  const share =
    limit === null ? "" : `${number(100 * limit.share)}% of ${number(limit.value)} ${limit.unit} ${limit.name}`;
  const ratioOf = (peer: string): string => {
    const ratio = ratios.find((candidate) => candidate.ours === name && candidate.peer === peer);
    return ratio === undefined ? "" : `${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}-${ratio.max.toFixed(2)})`;
  };
  const cells = keys.map((key) => String(subject[key] ?? ""));
  return [...cells, name, number(median), number(min), number(max), unit, share, ...peers.map(ratioOf)];
}

function align(lines: readonly (readonly string[])[]): string {
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  return lines
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** Three digits, or all before the point. */
function number(value: number): string {
  if (!Number.isFinite(value)) return "-";
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
