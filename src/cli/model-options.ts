/** The flags that every command takes: which model, how it is loaded, what is said while it is. */
import type { Command } from "commander";
import type { LaunchOptions } from "../index.js";
import { collect, oneOf, wholeNumber, worldSize } from "./option-values.js";

const KV_CACHE_DTYPES = ["f32", "bf16", "f16"] as const;
const DTYPES = ["auto", ...KV_CACHE_DTYPES] as const;

/** Values of the flags, under the names that commander gives them. */
export interface ModelFlags {
  readonly model: string;
  readonly revision?: string;
  readonly tp: number;
  readonly plugin?: readonly string[];
  readonly defaultPlugins: boolean;
  readonly loadFormat: string;
  readonly dtype: (typeof DTYPES)[number];
  readonly kvCacheDtype: (typeof KV_CACHE_DTYPES)[number];
  readonly kvCacheBytes?: number;
  readonly maxModelLen?: number;
  readonly logLevel?: string;
  readonly verbose?: boolean;
}

export function addModelOptions(command: Command): void {
  command
    .optionsGroup("Model:")
    .requiredOption("-m, --model <model>", "directory, file, or hub id org/name[@revision]")
    .option("--revision <revision>", "branch, tag or commit of a hub id")
    .option("--tp <ranks>", "tensor-parallel ranks, each a thread with its part of the model", worldSize("--tp"), 1)
    .option(
      "--dtype <type>",
      "of unquantized weights: auto (the model's own), f32, bf16, f16",
      oneOf("--dtype", DTYPES),
      "auto",
    )
    .option("--kv-cache-dtype <type>", "f32, bf16, f16", oneOf("--kv-cache-dtype", KV_CACHE_DTYPES), "f32")
    .option("--kv-cache-bytes <n>", "memory for the KV cache over all ranks", wholeNumber("--kv-cache-bytes", 1))
    .option("--max-model-len <tokens>", "longest prompt and answer together", wholeNumber("--max-model-len", 1))
    .option(
      "--load-format <format>",
      "name of the model loader; auto takes the first that recognizes the model",
      "auto",
    )
    .option("--plugin <plugin>", "package or path of a plugin; may be given several times", collect)
    .option("--no-default-plugins", "do not load the plugins that are installed with shardloom")
    .optionsGroup("Messages:")
    .option("--log-level <level>", "of the log on stderr: trace, debug, info, warn, error, fatal, silent")
    .option("--verbose", "log level info, and a stack trace with an error");
}

/** Level of the log: the flag's, or info with --verbose; undefined leaves it to the environment. */
export function logLevelOf(flags: ModelFlags): string | undefined {
  return flags.logLevel ?? (flags.verbose === true ? "info" : undefined);
}

/** What the flags say to `launch`. A command serves one request at a time, so that is what memory is taken for. */
export function launchOptionsOf(flags: ModelFlags): LaunchOptions {
  return {
    model: flags.model,
    revision: flags.revision,
    tensorParallelSize: flags.tp,
    dtype: flags.dtype,
    kvCacheDtype: flags.kvCacheDtype,
    kvCacheBytes: flags.kvCacheBytes,
    maxModelLength: flags.maxModelLen,
    maxSequences: 1,
    loadFormat: flags.loadFormat,
    logLevel: logLevelOf(flags),
  };
}
