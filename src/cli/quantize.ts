/** `shardloom quantize`: a model into another with quantized weights. */
import type { Command } from "commander";
import { type QuantizeReport, quantize } from "../index.js";
import type { CommandContext } from "./context.js";
import { createLoadingBar } from "./loading-bar.js";
import { addSourceOptions, pluginsOf, type SourceFlags } from "./model-options.js";
import {
  byteSize,
  collect,
  collectWith,
  filePath,
  type KeyValue,
  keyValue,
  oneOf,
  optionsOf,
  wholeNumber,
} from "./option-values.js";
import { formatBytes, formatMs } from "./quantities.js";

const DTYPES = ["auto", "f32", "bf16", "f16"] as const;

interface QuantizeFlags extends SourceFlags {
  readonly out: string;
  readonly format: string;
  readonly doubleQuant?: boolean;
  readonly blockSize?: number;
  readonly quantizationOption?: readonly KeyValue[];
  readonly skip?: readonly string[];
  readonly dtype: (typeof DTYPES)[number];
  readonly maxShardSize?: number;
  readonly overwrite?: boolean;
  readonly threads?: number;
  readonly json?: boolean;
}

const EXPLANATION = `
Formats come from plugins; an unknown one is answered with those there are. Weights of linear layers are quantized, embeddings
and norms never are; config.json says how, and the tokenizer and the like are copied, or written where the source is one file.

Without --skip the format chooses what it leaves as it is, as a rule the output head. A list replaces that choice: add
--skip lm_head to keep it. A pattern names modules by their whole name, a dotted prefix of it or one of its components;
* stands for any characters, ? for one.

The directory appears when it is complete. A run that fails or is interrupted leaves nothing; one that is killed may leave
a hidden directory, .OUT.incomplete-*, beside it, which can be removed.

Examples:
  shardloom quantize --model ./llama --out ./llama-nf4 --format nf4 --double-quant
  shardloom quantize --model model.gguf --dtype bf16 --out ./model-int8 --format int8
  shardloom quantize --model ./llama --out ./llama-fp4 --format fp4 --skip lm_head --skip "model.layers.0"`;

export function addQuantizeCommand(program: Command, context: CommandContext): void {
  const command = program.command("quantize").description("write a model with quantized weights");
  command
    .optionsGroup("Result:")
    .requiredOption("-o, --out <directory>", "the model to make", filePath("--out"))
    .requiredOption("--format <format>", "to quantize into, one that a plugin brings")
    .option("--double-quant", "quantize the scales as well")
    .option("--block-size <n>", "weights to a scale", wholeNumber("--block-size", 1))
    .option("--skip <glob>", "modules to leave as they are; may be given several times", collect)
    .option(
      "--quantization-option <key=value>",
      "something else the format is told, the value in JSON or plain text; may be given several times",
      collectWith(keyValue("--quantization-option")),
    )
    .option(
      "--dtype <type>",
      "to convert all weights to before: auto (not at all), f32, bf16, f16",
      oneOf("--dtype", DTYPES),
      "auto",
    )
    .option(
      "--max-shard-size <size>",
      "of one weight file: 5GB, 500MB, 2GiB (default: 5GB)",
      byteSize("--max-shard-size"),
    )
    .option("--overwrite", "replace the model that --out names")
    .option("--threads <n>", "default: one a core", wholeNumber("--threads", 1, 1024));
  addSourceOptions(command);
  command
    .optionsGroup("Output:")
    .option("--json", "print one JSON object when it is done")
    .addHelpText("after", EXPLANATION)
    .action((flags: QuantizeFlags) => runQuantize(flags, context));
}

async function runQuantize(flags: QuantizeFlags, { stdout, note, interruption }: CommandContext): Promise<void> {
  const startedAt = performance.now();
  const bar = createLoadingBar(process.stderr);
  let report: QuantizeReport;
  try {
    report = await quantize({
      model: flags.model,
      revision: flags.revision,
      out: flags.out,
      format: flags.format,
      options: formatOptionsOf(flags),
      skip: flags.skip,
      dtype: flags.dtype,
      overwrite: flags.overwrite,
      maxShardBytes: flags.maxShardSize,
      threads: flags.threads,
      plugins: pluginsOf(flags),
      loadFormat: flags.loadFormat,
      signal: interruption.signal,
      ...(bar === null
        ? {}
        : { onDownload: (progress) => bar.downloaded(progress), onProgress: (progress) => bar.quantized(progress) }),
    });
  } finally {
    bar?.stop();
  }
  const elapsedMs = performance.now() - startedAt;
  if (flags.json === true) await stdout.writeJson(reportOf(report, flags, elapsedMs));
  else note(summaryOf(report, elapsedMs));
}

/** What the format is told: only what was said, so that it can refuse what means nothing to it. */
function formatOptionsOf({ doubleQuant, blockSize, quantizationOption }: QuantizeFlags) {
  return {
    ...optionsOf(quantizationOption),
    ...(doubleQuant === undefined ? {} : { doubleQuant }),
    ...(blockSize === undefined ? {} : { blockSize }),
  };
}

function summaryOf(report: QuantizeReport, elapsedMs: number): string {
  const { quantizedTensors, copiedTensors, sourceBytes, outputBytes, files } = report;
  return (
    `${quantizedTensors} weights quantized, ${copiedTensors} tensors as they were: ${formatBytes(sourceBytes)} to ` +
    `${formatBytes(outputBytes)} in ${files.length} file${files.length === 1 ? "" : "s"}, ${formatMs(elapsedMs)}, ` +
    `${formatBytes(sourceBytes / (elapsedMs / 1000))}/s`
  );
}

function reportOf(report: QuantizeReport, { model, format }: QuantizeFlags, elapsedMs: number) {
  return {
    model,
    out: report.out,
    format,
    files: report.files,
    quantized_tensors: report.quantizedTensors,
    copied_tensors: report.copiedTensors,
    source_bytes: report.sourceBytes,
    output_bytes: report.outputBytes,
    elapsed_ms: elapsedMs,
  };
}
