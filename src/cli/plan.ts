/** `shardloom plan`: what each rank would own, without loading a weight. */
import type { Command } from "commander";
import { defaultKvCacheBytes } from "../engine/capacity.js";
import { type ModelPlan, plan, type RankPlan } from "../index.js";
import type { CommandContext } from "./context.js";
import { EXIT_MODEL } from "./exit-codes.js";
import { createLoadingBar } from "./loading-bar.js";
import { addRankOptions, pluginsOf, type RankFlags, rankOptionsOf } from "./model-options.js";
import { wholeNumber } from "./option-values.js";
import { formatBytes, formatNumber } from "./quantities.js";
import { inFlags } from "./report-error.js";
import { type TextColumn, textTable } from "./text-table.js";

interface PlanFlags extends RankFlags {
  readonly batch?: number;
  readonly memoryBytes?: number;
  readonly json?: boolean;
}

const EXPLANATION = `
Only headers are read: config.json, the index, and the first bytes of each weight file. Where the weight files are not
there, config.json stands for them. --model may also name a config.json alone.

The KV cache is what generate would take on this machine; with --max-model-len or --batch, what so many whole sequences take. The exit code is 3 when the model would not run like this; every reason is printed.

Example:
  shardloom plan --model ./llama --tp 4 --max-model-len 8192 --batch 16`;

export function addPlanCommand(program: Command, context: CommandContext): void {
  const command = program
    .command("plan")
    .description("say what each rank would own, and why a model would not run, without loading it");
  addRankOptions(command);
  command
    .optionsGroup("Plan:")
    .option("--batch <sequences>", "sequences at a time, for the KV cache", wholeNumber("--batch", 1, 4096))
    .option(
      "--memory-bytes <n>",
      "memory that everything has to fit into; default: what this process may use",
      wholeNumber("--memory-bytes", 1),
    )
    .optionsGroup("Output:")
    .option("--json", "print one JSON object, with every layer of every rank")
    .addHelpText("after", EXPLANATION)
    .action((flags: PlanFlags) => runPlan(flags, context));
}

async function runPlan(flags: PlanFlags, { stdout, interruption, exitWith }: CommandContext): Promise<void> {
  const bar = createLoadingBar(process.stderr);
  let made: ModelPlan;
  try {
    made = await plan({
      ...rankOptionsOf(flags),
      ...sizesOf(flags),
      plugins: pluginsOf(flags),
      memoryBytes: flags.memoryBytes,
      signal: interruption.signal,
      ...(bar === null ? {} : { onDownload: (progress) => bar.downloaded(progress) }),
    });
  } finally {
    bar?.stop();
  }
  if (flags.json === true) await stdout.writeJson(made);
  else await stdout.write(`${linesOf(made).join("\n")}\n`);
  if (made.problems.length > 0) exitWith(EXIT_MODEL);
}

/** Without a batch or a context, what generate takes: one sequence, as long as the default cache has room for. */
function sizesOf({ batch, maxModelLen, kvCacheBytes }: PlanFlags) {
  const asked = batch !== undefined || maxModelLen !== undefined;
  return { maxSequences: batch ?? 1, kvCacheBytes: kvCacheBytes ?? (asked ? undefined : defaultKvCacheBytes()) };
}

function linesOf(made: ModelPlan): readonly string[] {
  const sections = [headOf(made), ranksOf(made), sharingOf(made), exchangeOf(made), verdictOf(made)];
  return sections.filter((lines) => lines.length > 0).flatMap((lines, i) => (i === 0 ? lines : ["", ...lines]));
}

function headOf({ model, worldSize, quantization, dtype, kvCacheDtype, maxModelLength, ...made }: ModelPlan) {
  const lines: string[] = [];
  if (model !== null) {
    const { architecture, layers, hiddenSize, heads, kvHeads, headSize, vocabularySize } = model;
    lines.push(
      `${architecture}: ${layers} layers, hidden size ${hiddenSize}, ${heads} query and ${kvHeads} KV heads of ` +
        `${headSize}, vocabulary ${vocabularySize}`,
    );
  }
  const weights = quantization === null ? dtype : `${quantization}, the rest ${dtype}`;
  const sizes =
    maxModelLength === null
      ? []
      : [`context ${maxModelLength}`, `${made.maxSequences} sequence${made.maxSequences === 1 ? "" : "s"} at a time`];
  const dtypes = weights === null ? [] : [`weights ${weights}`, `KV cache ${kvCacheDtype}`];
  lines.push([`${worldSize} rank${worldSize === 1 ? "" : "s"}`, ...dtypes, ...sizes].join(", "));
  return [...lines, threadsText(made), ...made.notes.map(inFlags)];
}

const PINNED: Readonly<Record<ModelPlan["placement"]["pinning"], string>> = {
  threads: "each on a CPU of its own",
  nodes: "on the CPUs of their node",
  none: "on any CPU",
};

/** `threads here: 2 a rank, each on a CPU of its own (the ranks use the whole machine)` */
function threadsText({ placement: { threadsPerRank, pinning, reason } }: Pick<ModelPlan, "placement">): string {
  return `threads here: ${threadsPerRank} a rank, ${PINNED[pinning]} (${reason})`;
}

const RANK_COLUMNS: readonly TextColumn[] = [
  { title: "rank", align: "right" },
  { title: "query heads" },
  { title: "KV heads" },
  { title: "weights", align: "right" },
  { title: "replicated", align: "right" },
  { title: "KV cache", align: "right" },
  { title: "activations", align: "right" },
  { title: "total", align: "right" },
];

function ranksOf({ ranks, imbalance, uniqueBytes, totalBytes }: ModelPlan): readonly string[] {
  if (imbalance === null || uniqueBytes === null || totalBytes === null) return [];
  const sum = (bytesOf: (rank: RankPlan) => number): number => ranks.reduce((total, rank) => total + bytesOf(rank), 0);
  const rows = ranks.map((rank) => [
    `${rank.rank}`,
    rangeText(rank.queryHeads),
    rangeText(rank.kvHeads),
    ...bytesRow(rank),
  ]);
  const all = {
    parameterBytes: sum((rank) => rank.parameterBytes),
    replicatedBytes: sum((rank) => rank.replicatedBytes),
    kvCacheBytes: sum((rank) => rank.kvCacheBytes),
    activationBytes: sum((rank) => rank.activationBytes),
    totalBytes,
  };
  return [
    ...textTable(RANK_COLUMNS, [...rows, ["all", "", "", ...bytesRow(all)]]),
    `weights once: ${formatBytes(uniqueBytes)}; largest rank over the mean: ${imbalance.toFixed(3)}`,
  ];
}

type RankBytes = Pick<
  RankPlan,
  "parameterBytes" | "replicatedBytes" | "kvCacheBytes" | "activationBytes" | "totalBytes"
>;

function bytesRow({ parameterBytes, replicatedBytes, kvCacheBytes, activationBytes, totalBytes }: RankBytes) {
  return [parameterBytes, replicatedBytes, kvCacheBytes, activationBytes, totalBytes].map(formatBytes);
}

/** `4..7`, both ends included. */
function rangeText(range: { readonly start: number; readonly end: number } | null): string {
  if (range === null) return "-";
  const { start, end } = range;
  return end - start === 1 ? `${start}` : `${start}..${end - 1}`;
}

function sharingOf({ replicated, uneven }: ModelPlan): readonly string[] {
  const lines: string[] = [];
  if (replicated.length > 0) {
    const rows = replicated.map(({ tensors, count, holders, extraBytes }) => {
      return [tensors, `${count}`, `${holders}`, formatBytes(extraBytes)];
    });
    const columns: readonly TextColumn[] = [
      { title: "held by several ranks" },
      { title: "tensors", align: "right" },
      { title: "ranks", align: "right" },
      { title: "beyond one copy", align: "right" },
    ];
    lines.push(...textTable(columns, rows));
  }
  if (uneven.length > 0) {
    if (lines.length > 0) lines.push("");
    const rows = uneven.map(({ layers, count, split, sizes }) => [layers, `${count}`, split, sizes.join(" ")]);
    const columns: readonly TextColumn[] = [
      { title: "split unevenly" },
      { title: "layers", align: "right" },
      { title: "" },
      { title: "by rank" },
    ];
    lines.push(...textTable(columns, rows));
  }
  return lines;
}

function exchangeOf({ decode, worldSize }: ModelPlan): readonly string[] {
  if (decode === null || worldSize === 1) return [];
  const most = Math.max(...decode.bytesByRank);
  return [`exchanged per token: ${decode.collectives} collectives, ${formatBytes(most)} from each rank`];
}

function verdictOf({ problems, memoryBytes, totalBytes }: ModelPlan): readonly string[] {
  if (problems.length > 0)
    return ["This would not run:", ...problems.map(({ code, message }) => `- ${code}: ${inFlags(message)}`)];
  if (totalBytes === null) return [];
  return [
    `This would run: it takes ${formatNumber((100 * totalBytes) / memoryBytes)}% of ${formatBytes(memoryBytes)} of memory.`,
  ];
}
