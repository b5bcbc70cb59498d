/** A load profile as people read it on a terminal. */
import {
  LOAD_PHASES,
  type LoadPhase,
  type LoadProfile,
  type LoadSkew,
  type RankLoadProfile,
  slowestTensors,
} from "../index.js";
import { barOf, legendOf } from "./profile-colours.js";
import { formatBytes, formatMs } from "./quantities.js";
import { oneLine } from "./terminal-text.js";
import { type TextColumn, textTable } from "./text-table.js";

export interface ProfileTableOptions {
  /** Tensors to list. */
  readonly top: number;
  /** Columns of the terminal. */
  readonly width: number;
  readonly coloured: boolean;
}

const MIN_BAR_COLUMNS = 10;

/** Lines; what models and files are called is made safe for a terminal. */
export function profileLines(profile: LoadProfile, options: ProfileTableOptions): readonly string[] {
  const sections = [
    headOf(profile),
    barsOf(profile, options),
    phasesOf(profile),
    ratesOf(profile),
    systemOf(profile),
    tensorsOf(profile, options.top),
    [skewLine(profile)],
  ];
  return sections.filter((lines) => lines.length > 0).flatMap((lines, i) => (i === 0 ? lines : ["", ...lines]));
}

function headOf({ subject, worldSize, totalNs, bytesRead, readAmplification, peakMemoryBytes, ranks }: LoadProfile) {
  const { model, loadFormat, quantization, dtype, checkpointBytes } = subject;
  const weights = quantization === null ? dtype : `${quantization}, the rest ${dtype}`;
  const started = Math.max(...ranks.map(({ startNs }) => startNs));
  const amplification =
    readAmplification === null
      ? ""
      : `, ${readAmplification.toFixed(2)} x the ${formatBytes(checkpointBytes)} of the checkpoint`;
  return [
    `${oneLine(model)} (${loadFormat}; ${weights}) on ${worldSize} rank${worldSize === 1 ? "" : "s"}`,
    `ready after ${formatNs(totalNs)}, of which ${formatNs(started)} until the last rank had started`,
    `${formatBytes(bytesRead)} read${amplification}; peak memory of the process ${formatBytes(peakMemoryBytes)}`,
  ];
}

function barsOf(profile: LoadProfile, { width, coloured }: ProfileTableOptions): readonly string[] {
  const longestNs = Math.max(...profile.ranks.map(({ totalNs }) => totalNs));
  const labels = profile.ranks.map(({ rank }) => `rank ${rank}`);
  const labelColumns = Math.max(...labels.map((label) => label.length));
  const columns = Math.max(MIN_BAR_COLUMNS, width - labelColumns - 12);
  const bars = profile.ranks.map((rank, i) => {
    const label = (labels[i] ?? "").padStart(labelColumns);
    return `${label} ${stackedBar(rank, longestNs, columns, coloured)} ${formatNs(rank.busyNs)}`;
  });
  const shown = LOAD_PHASES.filter((phase) => profile.ranks.some(({ phases }) => phases[phase].selfNs > 0));
  return [...bars, "", `${" ".repeat(labelColumns)} ${shown.map((phase) => legendOf(phase, coloured)).join("   ")}`];
}

/** Columns are given out so that the ends of phases, not their lengths, are rounded: the bar has the right length. */
function stackedBar({ phases, totalNs }: RankLoadProfile, longestNs: number, columns: number, coloured: boolean) {
  const scale = longestNs === 0 ? 0 : columns / longestNs;
  let endNs = 0;
  let drawn = 0;
  let bar = "";
  for (const phase of LOAD_PHASES_IN_BARS) {
    endNs += phases[phase].selfNs;
    const end = Math.round(endNs * scale);
    if (end > drawn) bar += barOf(phase, end - drawn, coloured);
    drawn = end;
  }
  return bar + " ".repeat(columns - Math.round(totalNs * scale));
}

/** Waiting comes last, as it does in time. */
const LOAD_PHASES_IN_BARS: readonly LoadPhase[] = [...LOAD_PHASES.filter((phase) => phase !== "wait"), "wait"];

function phasesOf({ ranks }: LoadProfile): readonly string[] {
  const columns: readonly TextColumn[] = [
    { title: "time", align: "right" },
    ...LOAD_PHASES.map((phase): TextColumn => ({ title: phase, align: "right" })),
    { title: "without wait", align: "right" },
  ];
  const rows = ranks.map(({ rank, phases, busyNs }) => [
    `rank ${rank}`,
    ...LOAD_PHASES.map((phase) => formatNs(phases[phase].selfNs)),
    formatNs(busyNs),
  ]);
  return textTable(columns, rows);
}

function ratesOf({ ranks }: LoadProfile): readonly string[] {
  const phases = (["index", "read", "shard", "quantize", "repack"] as const).filter((phase) => {
    return ranks.some((rank) => rank.phases[phase].bytes > 0);
  });
  const columns: readonly TextColumn[] = [
    { title: "bytes", align: "right" },
    ...phases.map((phase): TextColumn => ({ title: phase, align: "right" })),
  ];
  const rows = ranks.map((rank) => [
    `rank ${rank.rank}`,
    ...phases.map((phase) => {
      const { bytes, gigabytesPerSecond } = rank.phases[phase];
      const rate = gigabytesPerSecond === null ? "" : ` at ${formatBytes(gigabytesPerSecond * 1e9)}/s`;
      return bytes === 0 ? "-" : `${formatBytes(bytes)}${rate}`;
    }),
  ]);
  const deaf = ranks.some(({ readsObserved }) => !readsObserved);
  const note = deaf ? ["The loader does not tell of its reads: read is all the time spent in its tensors."] : [];
  return [...textTable(columns, rows), ...note];
}

function systemOf({ ranks }: LoadProfile): readonly string[] {
  if (ranks.every(({ system }) => system === undefined)) return [];
  const columns: readonly TextColumn[] = [
    { title: "system", align: "right" },
    { title: "from storage", align: "right" },
    { title: "page cache", align: "right" },
    { title: "page faults", align: "right" },
    { title: "major", align: "right" },
    { title: "on a core", align: "right" },
    { title: "queued for one", align: "right" },
    { title: "parameters", align: "right" },
  ];
  const rows = ranks.map(({ rank, system = {}, parameterBytes }) => {
    const { readBytes, diskBytes, minorFaults, majorFaults, cpuNs, runQueueNs } = system;
    const cached = readBytes === undefined || diskBytes === undefined ? undefined : Math.max(0, readBytes - diskBytes);
    return [
      `rank ${rank}`,
      orDash(diskBytes, formatBytes),
      orDash(cached, formatBytes),
      orDash(minorFaults, String),
      orDash(majorFaults, String),
      orDash(cpuNs, formatNs),
      orDash(runQueueNs, formatNs),
      formatBytes(parameterBytes),
    ];
  });
  return textTable(columns, rows);
}

function tensorsOf(profile: LoadProfile, top: number): readonly string[] {
  const slowest = slowestTensors(profile, top);
  if (slowest.length === 0) return [];
  const columns: readonly TextColumn[] = [
    { title: "slowest tensors" },
    { title: "rank", align: "right" },
    { title: "time", align: "right" },
    { title: "median", align: "right" },
    { title: "mostly" },
    { title: "read", align: "right" },
  ];
  const rows = slowest.map(({ name, rank, durationNs, medianNs, phase, bytesRead }) => {
    return [oneLine(name), `${rank}`, formatNs(durationNs), formatNs(medianNs), phase, formatBytes(bytesRead)];
  });
  return textTable(columns, rows);
}

function skewLine({ skew, worldSize }: LoadProfile): string {
  if (worldSize === 1) return "one rank: no skew";
  return `skew ${skewText(skew)}`;
}

/** `1.32: rank 1 took 2.10 s where the median is 1.59 s, 490 ms of it in read` */
export function skewText({ ratio, slowestRank, slowestNs, medianNs, phase, excessNs }: LoadSkew): string {
  const cause = phase === null ? "" : `; it lost most in ${phase}, ${formatNs(excessNs)} more than the median there`;
  return `${ratio.toFixed(2)}: rank ${slowestRank} took ${formatNs(slowestNs)} where the median is ${formatNs(medianNs)}${cause}`;
}

export function formatNs(ns: number): string {
  return ns === 0 ? "-" : formatMs(ns / 1e6);
}

function orDash<Value>(value: Value | undefined, format: (value: Value) => string): string {
  return value === undefined ? "-" : format(value);
}
