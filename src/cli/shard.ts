/** `shardloom shard`: a model saved rank by rank, to be loaded without any work on its weights. */
import type { Command } from "commander";
import { type ShardReport, shard } from "../index.js";
import type { CommandContext } from "./context.js";
import { createLoadingBar } from "./loading-bar.js";
import {
  addQuantizationOptions,
  addSourceOptions,
  pluginsOf,
  type QuantizationFlags,
  type SourceFlags,
} from "./model-options.js";
import { byteSize, filePath, optionsOf, wholeNumber, worldSize } from "./option-values.js";
import { formatBytes, formatMs } from "./quantities.js";

interface ShardFlags extends SourceFlags, QuantizationFlags {
  readonly tp: number;
  readonly out: string;
  readonly maxShardSize?: number;
  readonly overwrite?: boolean;
  readonly threads?: number;
  readonly json?: boolean;
}

const EXPLANATION = `
Each rank's weights go to files of their own, quantized ones as the codes and scales that kernels multiply with: nothing is
left to do when they are loaded, and no plugin is needed. --tp says for how many ranks the state is laid out; it loads at
any other number as well, with the same values. Checksums are verified when it is loaded.

Example:
  shardloom shard --model ./llama --tp 4 --out ./llama-tp4
  shardloom generate --model ./llama-tp4 --tp 4 --prompt "Once upon a time"`;

export function addShardCommand(program: Command, context: CommandContext): void {
  const command = program.command("shard").description("save a model as each rank would hold it");
  command
    .optionsGroup("State:")
    .requiredOption("--out <directory>", "directory to make", filePath("--out"))
    .option("--tp <ranks>", "ranks to lay the state out for", worldSize("--tp"), 1)
    .option("--max-shard-size <size>", "most bytes of tensors in a file, e.g. 5GB", byteSize("--max-shard-size"))
    .option("--overwrite", "replace the model that --out names")
    .option("--threads <n>", "ranks to load at a time; default: one a core", wholeNumber("--threads", 1, 1024));
  addSourceOptions(command);
  addQuantizationOptions(command);
  command
    .optionsGroup("Output:")
    .option("--json", "print one JSON object when it is done")
    .addHelpText("after", EXPLANATION)
    .action((flags: ShardFlags) => runShard(flags, context));
}

async function runShard(flags: ShardFlags, { stdout, note, interruption }: CommandContext): Promise<void> {
  const startedAt = performance.now();
  const bar = createLoadingBar(process.stderr);
  let report: ShardReport;
  try {
    report = await shard({
      model: flags.model,
      revision: flags.revision,
      tensorParallelSize: flags.tp,
      out: flags.out,
      overwrite: flags.overwrite,
      maxShardBytes: flags.maxShardSize,
      threads: flags.threads,
      plugins: pluginsOf(flags),
      loadFormat: flags.loadFormat,
      dtype: flags.dtype,
      quantization: flags.quantization,
      quantizationOptions: optionsOf(flags.quantizationOption),
      signal: interruption.signal,
      ...(bar === null
        ? {}
        : { onDownload: (progress) => bar.downloaded(progress), onProgress: (progress) => bar.sharded(progress) }),
    });
  } finally {
    bar?.stop();
  }
  const elapsedMs = performance.now() - startedAt;
  if (flags.json === true) await stdout.writeJson(reportOf(report, flags, elapsedMs));
  else note(summaryOf(report, elapsedMs));
}

function summaryOf({ worldSize: ranks, files, outputBytes }: ShardReport, elapsedMs: number): string {
  const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;
  return `${formatBytes(outputBytes)} of ${count(ranks, "rank")} in ${count(files.length, "file")}, ${formatMs(elapsedMs)}`;
}

function reportOf({ out, worldSize: tp, files, outputBytes }: ShardReport, { model }: ShardFlags, elapsedMs: number) {
  return {
    model,
    out,
    tp,
    files: files.map(({ name, rank, sizeBytes }) => ({ name, rank, bytes: sizeBytes })),
    output_bytes: outputBytes,
    elapsed_ms: elapsedMs,
  };
}
