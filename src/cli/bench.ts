/** `shardloom bench decode`: how fast a model decodes one sequence, and what the time of a step goes to. */
import type { Command } from "commander";
import { InternalError, OptionError } from "../core/errors.js";
import { readMemory } from "../core/machine-memory.js";
import { readTopology } from "../core/machine-topology.js";
import { type Engine, type GenerationRequest, type GenerationTimings, profileSince } from "../index.js";
import { chooseWorldSize } from "../parallel/world-size.js";
import type { CommandContext } from "./context.js";
import { launchModel } from "./launch-model.js";
import { addModelOptions, type ModelFlags } from "./model-options.js";
import { realNumber, tokenIds, wholeNumber } from "./option-values.js";
import { formatMs, formatNumber } from "./quantities.js";
import { rankLimits } from "./rank-limits.js";
import { breakdownLines, decodeBreakdown, type RankBreakdown, type RankLimits } from "./step-breakdown.js";

interface DecodeFlags extends ModelFlags {
  readonly prompt?: string;
  readonly promptIds?: readonly number[];
  readonly tokens: number;
  readonly runs: number;
  readonly breakdown?: boolean;
  readonly dramGbps?: number;
  readonly fmaGflops?: number;
  readonly json?: boolean;
}

const DEFAULT_PROMPT: readonly number[] = [1, 2, 3, 4, 5];
/** Tokens of the run that nobody measures: it touches memory, and has code compiled. */
const WARM_UP_TOKENS = 48;

const EXPLANATION = `
After a run that warms up, the same prompt is continued several times by --tokens tokens; the median run is shown.

--breakdown has every rank time its kernels and collectives, and shows an average decode step of each: time and calls of
every kernel, bytes and operations a second, and the part of the step that went neither to kernels nor to collectives.
Bytes are those of weights, cache and activations, each counted once a call: small operands come from caches, and may
exceed what memory gives. What a rank can reach is its share of the machine's speeds, which are measured first, unless
--dram-gbps and --fma-gflops say it; whole numbers may be multiplied faster than that.

Example:
  shardloom bench decode --model model.gguf --tp 2 --tokens 128 --breakdown`;

export function addBenchCommand(program: Command, context: CommandContext): void {
  const bench = program.command("bench").description("measure how fast a model runs on this machine");
  const command = bench.command("decode").description("decoding one sequence, token by token");
  command
    .optionsGroup("Bench:")
    .option("-p, --prompt <text>", "a text to continue")
    .option("--prompt-ids <ids>", "the same as token ids; without either: a few of them", tokenIds("--prompt-ids"))
    .option("--tokens <n>", "tokens to decode in a run", wholeNumber("--tokens", 2), 128)
    .option("--runs <n>", "runs that are measured", wholeNumber("--runs", 1), 3)
    .option("--breakdown", "show what the time of a decode step goes to, rank by rank")
    .option("--dram-gbps <n>", "bytes a rank can stream from memory, in 10^9 a second", speed("--dram-gbps"))
    .option("--fma-gflops <n>", "f32 operations a rank can do, in 10^9 a second", speed("--fma-gflops"));
  addModelOptions(command);
  command
    .optionsGroup("Output:")
    .option("--json", "print one JSON object")
    .addHelpText("after", EXPLANATION)
    .action((flags: DecodeFlags) => benchDecode(flags, context));
}

const speed = (flag: string) => realNumber(flag, "above 0", (value) => value > 0);

/** What `bench decode --json` prints. */
interface DecodeReport {
  readonly model: string;
  readonly tp: number;
  readonly tokens: number;
  readonly load_ms: number;
  /** One entry a run. */
  readonly ttft_ms: readonly number[];
  readonly tpot_ms: readonly number[];
  /** Of the median run. */
  readonly tokens_per_second: number;
  readonly breakdown?: {
    readonly dram_gbps: number | null;
    readonly fma_gflops: number | null;
    readonly ranks: readonly RankBreakdown[];
  };
}

async function benchDecode(flags: DecodeFlags, context: CommandContext): Promise<void> {
  const { signal } = context.interruption;
  checkTogether(flags);
  const limits = flags.breakdown === true ? limitsOf(flags) : { dramGbps: null, fmaGflops: null };
  const { engine, loadMs } = await launchModel(flags, signal, { profileSteps: flags.breakdown === true });
  try {
    const report = await measure(flags, engine, { loadMs, limits, signal });
    if (signal.aborted) return;
    if (flags.json === true) await context.stdout.writeJson(report);
    else for (const line of linesOf(report)) await context.stdout.write(`${line}\n`);
  } finally {
    await engine.close();
  }
}

/** Throws OptionError `INVALID_OPTION` for flags that another one makes meaningless. */
function checkTogether({ prompt, promptIds, breakdown, dramGbps, fmaGflops }: DecodeFlags): void {
  if (prompt !== undefined && promptIds !== undefined) {
    throw new OptionError("INVALID_OPTION", "expected --prompt or --prompt-ids but received both", {
      option: "--prompt-ids",
      expected: "--prompt or --prompt-ids",
    });
  }
  if (breakdown === true) return;
  for (const [flag, speed] of [
    ["--dram-gbps", dramGbps],
    ["--fma-gflops", fmaGflops],
  ] as const) {
    if (speed === undefined) continue;
    throw new OptionError("INVALID_OPTION", `expected --breakdown beside ${flag} but received none`, {
      option: flag,
      expected: "--breakdown",
    });
  }
}

/** Measured before the model is there, while nothing else runs. */
function limitsOf(flags: DecodeFlags): RankLimits {
  const { tp, threadsPerRank, dramGbps = null, fmaGflops = null } = flags;
  // The model, which may have fewer KV heads than the machine has nodes, is not there yet.
  const ranks = tp === "auto" ? chooseWorldSize(readTopology(), readMemory(), Number.MAX_SAFE_INTEGER).worldSize : tp;
  return rankLimits({ ranks, threadsPerRank, dramGbps, fmaGflops });
}

interface Measuring {
  readonly loadMs: number;
  readonly limits: RankLimits;
  readonly signal: AbortSignal;
}

async function measure(
  flags: DecodeFlags,
  engine: Engine,
  { loadMs, limits, signal }: Measuring,
): Promise<DecodeReport> {
  const { model, tokens, runs } = flags;
  await decode(flags, engine, Math.min(tokens, WARM_UP_TOKENS), signal);
  const before = engine.stepProfile();
  const timings: GenerationTimings[] = [];
  for (let run = 0; run < runs && !signal.aborted; run++) timings.push(await decode(flags, engine, tokens, signal));
  const after = engine.stepProfile();
  const tpot = timings.map(({ tpotMs }) => tpotMs ?? Number.NaN);
  return {
    model,
    tp: engine.worldSize,
    tokens,
    load_ms: loadMs,
    ttft_ms: timings.map(({ ttftMs }) => ttftMs ?? Number.NaN),
    tpot_ms: tpot,
    tokens_per_second: 1000 / (tpot.toSorted((a, b) => a - b)[Math.floor(tpot.length / 2)] ?? Number.NaN),
    ...(before === null || after === null
      ? {}
      : {
          breakdown: {
            dram_gbps: limits.dramGbps,
            fma_gflops: limits.fmaGflops,
            ranks: profileSince(after, before).map((rank) => decodeBreakdown(rank, limits)),
          },
        }),
  };
}

/** Continues the prompt by `tokens` tokens; the first of them comes from the prompt's own step. */
async function decode(
  { prompt, promptIds = DEFAULT_PROMPT }: DecodeFlags,
  engine: Engine,
  tokens: number,
  signal: AbortSignal,
): Promise<GenerationTimings> {
  const sampling = { maxTokens: tokens, ignoreEndOfSequence: true };
  const request: GenerationRequest =
    prompt === undefined ? { promptTokenIds: promptIds, sampling } : { prompt, sampling };
  for await (const delta of engine.generate(request, { signal })) {
    if (delta.timings !== undefined) return delta.timings;
  }
  throw new InternalError("an answer ended without its timings");
}

function linesOf(report: DecodeReport): readonly string[] {
  const { tokens_per_second: perSecond, tpot_ms, ttft_ms, tokens, tp, breakdown } = report;
  const best = Math.min(...tpot_ms);
  const speeds = `${formatNumber(perSecond)} tokens/s (best run ${formatNumber(1000 / best)})`;
  const first = `TTFT ${formatMs(Math.min(...ttft_ms))}`;
  const known = (limit: number | null, unit: string): string =>
    `${limit === null ? "unknown" : formatNumber(limit)} ${unit}`;
  return [
    `tp ${tp}: ${speeds}, ${formatMs(1000 / perSecond)} a token, ${first}, ${tpot_ms.length} runs of ${tokens} tokens`,
    ...(breakdown === undefined
      ? []
      : [`limits of a rank: ${known(breakdown.dram_gbps, "GB/s")}, ${known(breakdown.fma_gflops, "GFLOP/s")}`]),
    ...(breakdown?.ranks ?? []).flatMap((rank) => ["", ...breakdownLines(rank)]),
  ];
}
