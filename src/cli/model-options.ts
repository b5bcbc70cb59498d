/** The flags that every command takes: which model, how it is loaded, what is said while it is. */
import type { Command } from "commander";
import { COLLECTIVE_PAYLOADS, type CollectivePayload } from "../collectives/payload.js";
import { createLogger } from "../core/logger.js";
import type { LaunchOptions, PlanOptions } from "../index.js";
import { ACTIVATIONS, type Activations } from "../kernels/activation-levels.js";
import { KV_CACHE_DTYPES, type KvCacheDType } from "../kernels/kv-cache-dtype.js";
import { defaultPlugins } from "./default-plugins.js";
import {
  collect,
  collectWith,
  type KeyValue,
  keyValue,
  oneOf,
  optionsOf,
  threadCount,
  wholeNumber,
  worldSizeOrAuto,
} from "./option-values.js";

const DTYPES = ["auto", "f32", "bf16", "f16"] as const;

/** Which model, and where it comes from. Under the names that commander gives the flags. */
export interface SourceFlags {
  readonly model: string;
  readonly revision?: string;
  readonly plugin?: readonly string[];
  readonly defaultPlugins: boolean;
  readonly loadFormat: string;
  readonly logLevel?: string;
  readonly verbose?: boolean;
}

/** What its weights become while it is loaded. */
export interface QuantizationFlags {
  readonly dtype: (typeof DTYPES)[number];
  readonly quantization?: string;
  readonly quantizationOption?: readonly KeyValue[];
}

/** How it is spread over ranks, and what they keep and exchange. */
export interface RankFlags extends SourceFlags, QuantizationFlags {
  readonly tp: number | "auto";
  readonly threadsPerRank: number | "auto";
  readonly pinning: boolean;
  readonly kvCacheDtype: KvCacheDType;
  readonly collectivePayload: CollectivePayload;
  readonly kvCacheBytes?: number;
  readonly maxModelLen?: number;
}

/** The same of a model that is run. */
export interface ModelFlags extends RankFlags {
  readonly activations: Activations;
  readonly verifyChecksums: boolean;
}

/** Flags of a model that is run. */
export function addModelOptions(command: Command): void {
  addRanks(command)
    .option(
      "--activations <level>",
      "what activations are rounded to where they meet weights: auto (by weight, instruction set and batch), f32, bf16, int16, int8",
      oneOf("--activations", ACTIVATIONS),
      "auto",
    )
    .option("--no-verify-checksums", "do not verify the checksums of a sharded state");
  addLoading(command);
}

/** Flags of a model that would be run: those that what ranks own and exchange depends on. */
export function addRankOptions(command: Command): void {
  addLoading(addRanks(command));
}

/** Flags of a model that is read, for a command that says itself what is done with it. */
export function addSourceOptions(command: Command): void {
  addLoading(addModel(command));
}

function addRanks(command: Command): Command {
  return addQuantizationOptions(
    addModel(command)
      .option(
        "--tp <ranks>",
        "tensor-parallel ranks, each a worker with its part of the model; auto: one for each NUMA node",
        worldSizeOrAuto("--tp"),
        1,
      )
      .option(
        "--threads-per-rank <threads>",
        "threads that share the work of a rank; auto: the cores over the ranks",
        threadCount("--threads-per-rank"),
        "auto" as const,
      )
      .option("--no-pinning", "let threads run on any CPU also where the ranks use the whole machine"),
  )
    .option("--kv-cache-dtype <type>", "f32, bf16, f16, int8", oneOf("--kv-cache-dtype", KV_CACHE_DTYPES), "f32")
    .option(
      "--collective-payload <type>",
      "what ranks send each other to sum: f32, bf16",
      oneOf("--collective-payload", COLLECTIVE_PAYLOADS),
      "f32",
    )
    .option("--kv-cache-bytes <n>", "memory for the KV cache over all ranks", wholeNumber("--kv-cache-bytes", 1))
    .option("--max-model-len <tokens>", "longest prompt and answer together", wholeNumber("--max-model-len", 1));
}

/** Flags of what weights become while a model is loaded. */
export function addQuantizationOptions(command: Command): Command {
  return command
    .option(
      "--dtype <type>",
      "of unquantized weights: auto (the model's own), f32, bf16, f16",
      oneOf("--dtype", DTYPES),
      "auto",
    )
    .option("--quantization <method>", "quantize a model that is not quantized while it is loaded")
    .option(
      "--quantization-option <key=value>",
      "what the method is told, the value in JSON or plain text; may be given several times",
      collectWith(keyValue("--quantization-option")),
    );
}

function addModel(command: Command): Command {
  return command
    .optionsGroup("Model:")
    .requiredOption("-m, --model <model>", "directory, file, or hub id org/name[@revision]")
    .option("--revision <revision>", "branch, tag or commit of a hub id");
}

function addLoading(command: Command): void {
  command
    .option(
      "--load-format <format>",
      "auto (the first that recognizes the model), safetensors, sharded_state, dummy (made-up weights for a config), or a plugin's",
      "auto",
    )
    .option("--plugin <plugin>", "package or path of a plugin; may be given several times", collect)
    .option("--no-default-plugins", "do not load the plugins that are installed with shardloom")
    .optionsGroup("Messages:")
    .option("--log-level <level>", "of the log on stderr: trace, debug, info, warn, error, fatal, silent")
    .option("--verbose", "log level info, and a stack trace with an error");
}

/** Plugins to load. Those that the user names come first, and are the first to be asked whether they recognize the model. */
export function pluginsOf(flags: SourceFlags): readonly string[] {
  const named = flags.plugin ?? [];
  return flags.defaultPlugins ? [...named, ...defaultPlugins(createLogger(logLevelOf(flags)))] : named;
}

/** Level of the log: the flag's, or info with --verbose; undefined leaves it to the environment. */
export function logLevelOf(flags: SourceFlags): string | undefined {
  return flags.logLevel ?? (flags.verbose === true ? "info" : undefined);
}

/** What the flags say to `launch`. */
export function launchOptionsOf(flags: ModelFlags): LaunchOptions {
  return {
    ...rankOptionsOf(flags),
    activations: flags.activations,
    verifyChecksums: flags.verifyChecksums,
    logLevel: logLevelOf(flags),
  };
}

/** What they say to both `launch` and `plan`. A command serves one request at a time, so that is what memory is taken for. */
export function rankOptionsOf(flags: RankFlags): LaunchOptions & PlanOptions {
  return {
    model: flags.model,
    revision: flags.revision,
    tensorParallelSize: flags.tp,
    threadsPerRank: flags.threadsPerRank,
    ...(flags.pinning ? {} : { pinning: false }),
    dtype: flags.dtype,
    quantization: flags.quantization,
    quantizationOptions: optionsOf(flags.quantizationOption),
    kvCacheDtype: flags.kvCacheDtype,
    collectivePayload: flags.collectivePayload,
    kvCacheBytes: flags.kvCacheBytes,
    maxModelLength: flags.maxModelLen,
    maxSequences: 1,
    loadFormat: flags.loadFormat,
  };
}
