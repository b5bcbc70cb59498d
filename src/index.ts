/** The public API. Wiring only: it finds the model, loads plugins, sizes the engine and starts the ranks. */
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import type { DownloadProgress } from "./checkpoint/hub-snapshot.js";
import { resolveModel } from "./checkpoint/model-dir.js";
import { checkOutput } from "./checkpoint/output-directory.js";
import { weightBytes } from "./checkpoint/weight-bytes.js";
import { type CollectivePayload, checkCollectivePayload } from "./collectives/payload.js";
import { type RankProgress, startCoordinator } from "./coordinator/coordinator.js";
import { groupLoadProfile, profileOrigin } from "./coordinator/group-load-profile.js";
import { type QuantizeProgress, type QuantizeReport, quantizeCheckpoint } from "./coordinator/quantize-checkpoint.js";
import { type ShardProgress, type ShardReport, shardCheckpoint } from "./coordinator/shard-checkpoint.js";
import type { CoordinatorTimeouts } from "./coordinator/timeouts.js";
import type { FloatDType } from "./core/dtype.js";
import { isDType, isFloat } from "./core/dtype.js";
import { describeValue, OptionError } from "./core/errors.js";
import type { JsonObject } from "./core/json.js";
import { createLogger } from "./core/logger.js";
import { readMemory } from "./core/machine-memory.js";
import { readTopology } from "./core/machine-topology.js";
import { checkWorldSize } from "./core/rank.js";
import { type CapacityOptions, LEAST_CAPACITY, planCapacity } from "./engine/capacity.js";
import { createEngine, type Engine } from "./engine/engine.js";
import { type ModelPlan, planModel } from "./engine/model-plan.js";
import { ACTIVATIONS, type Activations, isActivations } from "./kernels/activation-levels.js";
import { createKernels } from "./kernels/select.js";
import { kernelSelection } from "./kernels/selection.js";
import { dummyLoader } from "./loading/dummy-loader.js";
import { loadPlugins, resolvePlugins } from "./loading/plugins.js";
import { selectFamily } from "./models/registry.js";
import { checkThreadsPerRank } from "./parallel/placement.js";
import { chooseWorldSize } from "./parallel/world-size.js";
import type { QuantizationChoice } from "./quantization/registry.js";
import type { RankOptions } from "./rank/rank-options.js";

export type { DownloadProgress } from "./checkpoint/hub-snapshot.js";
export type { CollectivePayload } from "./collectives/payload.js";
export type { QuantizeProgress, QuantizeReport } from "./coordinator/quantize-checkpoint.js";
export type { ShardProgress, ShardReport } from "./coordinator/shard-checkpoint.js";
export {
  CheckpointError,
  CollectiveError,
  type ErrorDetails,
  InternalError,
  OptionError,
  PartitionError,
  PluginError,
  RankError,
  RequestError,
  ShardloomError,
  UnsupportedError,
} from "./core/errors.js";
export {
  type CollectivesProfile,
  type KernelProfile,
  type PhaseProfile,
  profileSince,
  type RankProfile,
  type StepProfile,
} from "./core/step-profile.js";
export type { CapacityOptions } from "./engine/capacity.js";
export type { ChatMessage } from "./engine/chat-template.js";
export type { Engine, EngineStats } from "./engine/engine.js";
export type {
  GenerationDelta,
  GenerationRequest,
  GenerationTimings,
  RequestOptions,
  ScoreResult,
  TokenLogprob,
  TokenLogprobs,
} from "./engine/generation.js";
export type { ModelPlan, PlannedModel, PlanProblem, RankPlan, Replicated, Uneven } from "./engine/model-plan.js";
export type { SamplingOptions } from "./engine/sampling.js";
export type { FinishReason } from "./engine/sequence.js";
export type { Activations } from "./kernels/activation-levels.js";
export {
  LOAD_PHASES,
  type LoadPhase,
  type LoadPhaseProfile,
  type LoadProfile,
  type LoadSkew,
  type LoadSpan,
  type RankLoadProfile,
  type SlowTensor,
  type SpanPart,
  slowestTensors,
} from "./loading/load-profile.js";
export { SUPPORTED_ARCHITECTURES } from "./models/registry.js";
export type { Placement, RankPlace } from "./parallel/placement.js";
export type { StepExchange } from "./rank/group-plan.js";
export type { RankReport } from "./rank/model-runner.js";

/** How far one rank is with loading. */
export interface LoadProgress {
  readonly rank: number;
  /** Bytes it has read. */
  readonly bytesRead: number;
  /** Bytes of all weight files: about what all ranks read together. */
  readonly totalBytes: number;
}

/** How an engine is launched. Only `model` is needed. */
export interface LaunchOptions extends CapacityOptions {
  /** A directory, a file, or a hub id `org/name[@revision]`. */
  readonly model: string;
  /** Branch, tag or commit of a hub repository. */
  readonly revision?: string | undefined;
  /** Ranks, each a worker thread with its shard of the model; "auto": one for each NUMA node. Default 1. */
  readonly tensorParallelSize?: number | "auto" | undefined;
  /**
   * Threads that share the kernels of each rank. "auto", the default, shares the cores that the process may use (its
   * affinity mask and its control group's quota) among the ranks. Answers do not depend on it.
   */
  readonly threadsPerRank?: number | "auto" | undefined;
  /**
   * Whether each thread keeps to a CPU of its own, near the memory of its rank. By default if the ranks use the whole
   * machine and no other engine of this process is pinned; true whenever there are CPUs for all threads; false never.
   */
  readonly pinning?: boolean | undefined;
  /** Package names or paths. Those in SHARDLOOM_PLUGINS, separated by commas, are loaded as well. */
  readonly plugins?: readonly string[] | undefined;
  /** Name of a model loader; by default whichever recognizes the model. */
  readonly loadFormat?: string | undefined;
  /**
   * Quantization method. A checkpoint that is quantized says so itself; one that is not is quantized while it is loaded,
   * by the plugin that serves the method.
   */
  readonly quantization?: string | undefined;
  /** What the method's plugin takes beside its name. */
  readonly quantizationOptions?: JsonObject | undefined;
  /** dtype of unquantized weights; "auto" takes config.json's. */
  readonly dtype?: "auto" | FloatDType | undefined;
  /** dtype of the KV cache. Default f32: exact. */
  readonly kvCacheDtype?: FloatDType | undefined;
  /**
   * How activations are multiplied with quantized weights: `f32` as they are; `int16` and `int8` rounded to whole numbers
   * in blocks, which is faster; `auto`, the default, by instruction set and the rows of a call (activation-levels.ts).
   */
  readonly activations?: Activations | undefined;
  /**
   * What ranks send each other to sum: f32, or bf16, which is half as much and rounds each rank's part. Default f32: exact.
   */
  readonly collectivePayload?: CollectivePayload | undefined;
  readonly timeouts?: Partial<CoordinatorTimeouts> | undefined;
  /** Whether the checksums of a sharded state are verified while it is loaded, by all ranks together. Default true. */
  readonly verifyChecksums?: boolean | undefined;
  /**
   * Has ranks compare the result of every collective, to find out whether something writes where it must not:
   * CollectiveError `COLLECTIVE_CORRUPTED`. Costs time in every step. Default false.
   */
  readonly verifyCollectives?: boolean | undefined;
  /** Has ranks count where the time of their steps goes, for `engine.stepProfile()`. Costs some per cent. Default false. */
  readonly profileSteps?: boolean | undefined;
  /** Has every rank record where the time of loading goes: `engine.loadProfile` (docs/load-profile.md). Default false. */
  readonly loadProfile?: boolean | undefined;
  /** Called for every chunk that is downloaded from the hub. */
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
  /** Called a few times a second while ranks load. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Gives up the launch when aborted. */
  readonly signal?: AbortSignal | undefined;
  /** Level of the log on stderr. Default SHARDLOOM_LOG_LEVEL, or "warn". */
  readonly logLevel?: string | undefined;
}

/**
 * Loads a model on `tensorParallelSize` ranks and returns an engine that serves it. The engine must be closed.
 *
 * Throws OptionError for a wrong option, PluginError for a plugin that is missing or broken, CheckpointError for a model
 * that is missing or damaged, UnsupportedError for one this version cannot run, PartitionError for one that cannot be
 * split into that many ranks, RankError when a rank does not start.
 */
export async function launch(options: LaunchOptions): Promise<Engine> {
  const wanted = checkRanks(options.tensorParallelSize ?? 1);
  const threadsPerRank = checkThreadsPerRank(options.threadsPerRank ?? "auto");
  const pinning = checkPinning(options.pinning);
  const logger = createLogger(options.logLevel);
  const kvCacheDtype = checkDtype("kvCacheDtype", options.kvCacheDtype ?? "f32");
  const activations = checkActivations(options.activations ?? "auto");
  const collectivePayload = checkCollectivePayload(options.collectivePayload ?? "f32");
  const plugins = resolvePlugins(options.plugins ?? []);
  const registries = await loadPlugins(plugins);
  const { signal, revision, onProgress, onDownload } = options;
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload });
  const originMs = profileOrigin();
  const profiled = options.loadProfile === true;
  const loader = registries.modelLoaders.select(path, options.loadFormat);
  const description = await loader.describe(path);
  const config = selectFamily(description.config).parseConfig(description.config);
  const chosen = wanted === "auto" ? chooseWorldSize(readTopology(), readMemory(), config.kvHeads) : null;
  if (chosen !== null) logger.info(chosen, "chose the number of ranks");
  const worldSize = chosen?.worldSize ?? checkWorldSize(wanted);
  const quantization = registries.quantization.select(description.config, choiceOf(options));
  const capacity = planCapacity(config, options, worldSize, kvCacheDtype);
  const dtype =
    options.dtype === undefined || options.dtype === "auto" ? config.dtype : checkDtype("dtype", options.dtype);
  // Ranks choose kernels of their own, alike; here for one warning instead of one a rank, and to fail before they start.
  createKernels(activations, (message) => logger.warn(message));
  logger.debug(kernelSelection(), "selected the kernels");
  const loadFormat = loader.format;
  const ranks: RankOptions = {
    path,
    loadFormat,
    description,
    worldSize,
    quantization,
    dtype,
    kvCacheDtype,
    activations,
    collectivePayload,
    ...capacity,
    ...(options.verifyChecksums === undefined ? {} : { verifyChecksums: options.verifyChecksums }),
  };
  const executor = await startCoordinator({
    ranks,
    config,
    plugins,
    logger,
    threadsPerRank,
    pinning,
    ...(options.timeouts === undefined ? {} : { timeouts: options.timeouts }),
    ...(options.verifyCollectives === undefined ? {} : { verifyCollectives: options.verifyCollectives }),
    stepsInFlight: 2,
    ...(options.profileSteps === undefined ? {} : { profileSteps: options.profileSteps }),
    ...(onProgress === undefined ? {} : { onProgress: reporter(onProgress, weightBytes(path)) }),
    ...(profiled ? { loadProfileOriginMs: originMs } : {}),
    ...(signal === undefined ? {} : { signal }),
  });
  try {
    const { model } = options;
    const loadProfile = profiled ? groupLoadProfile(executor.reports, ranks, { model, originMs }) : undefined;
    return createEngine({ executor, description, logger, loadProfile });
  } catch (error) {
    await executor.close();
    throw error;
  }
}

/** What is planned. Only `model` is needed; sizes are those of an engine. */
export interface PlanOptions extends CapacityOptions {
  /** A directory, a file, a hub id `org/name[@revision]`, or a config.json without weights. */
  readonly model: string;
  readonly revision?: string | undefined;
  /** As for launch(). Default 1. */
  readonly tensorParallelSize?: number | "auto" | undefined;
  /** As for launch(): the plan says what ranks would get on this machine. */
  readonly threadsPerRank?: number | "auto" | undefined;
  readonly pinning?: boolean | undefined;
  readonly plugins?: readonly string[] | undefined;
  readonly loadFormat?: string | undefined;
  readonly quantization?: string | undefined;
  readonly quantizationOptions?: JsonObject | undefined;
  readonly dtype?: "auto" | FloatDType | undefined;
  readonly kvCacheDtype?: FloatDType | undefined;
  readonly collectivePayload?: CollectivePayload | undefined;
  /** Memory that everything has to fit into, in bytes. Default: what this process may use. */
  readonly memoryBytes?: number | undefined;
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Says what each rank would own, what ranks would exchange, and every reason why the model would not run, without
 * loading a weight: from the headers of the weight files, or from config.json (and the index) where there are none.
 *
 * Throws OptionError for an option that means nothing, PluginError for a plugin that is missing or broken,
 * CheckpointError `MODEL_NOT_FOUND` and what the hub answers. What keeps this model from running is in `problems`.
 */
export async function plan(options: PlanOptions): Promise<ModelPlan> {
  const worldSize = checkRanks(options.tensorParallelSize ?? 1);
  const kvCacheDtype = checkDtype("kvCacheDtype", options.kvCacheDtype ?? "f32");
  const { dtype = "auto", revision, signal, onDownload, loadFormat, memoryBytes } = options;
  const registries = await loadPlugins(resolvePlugins(options.plugins ?? []));
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload, weights: false });
  return planModel(
    {
      path,
      worldSize,
      threadsPerRank: checkThreadsPerRank(options.threadsPerRank ?? "auto"),
      pinning: checkPinning(options.pinning),
      loadFormat,
      quantization: choiceOf(options),
      dtype: dtype === "auto" ? dtype : checkDtype("dtype", dtype),
      kvCacheDtype,
      collectivePayload: checkCollectivePayload(options.collectivePayload ?? "f32"),
      capacity: options,
      ...(memoryBytes === undefined ? {} : { memoryBytes: checkCount("memoryBytes", memoryBytes) }),
    },
    registries,
  );
}

/** How a model is quantized. `model`, `out` and `format` are needed. */
export interface QuantizeOptions {
  /** A directory, a file, or a hub id `org/name[@revision]`. */
  readonly model: string;
  readonly revision?: string | undefined;
  /** Directory to make. It appears when it is complete. */
  readonly out: string;
  /** A format that a plugin has registered. */
  readonly format: string;
  /** What the format is told; keys are the format's. */
  readonly options?: JsonObject | undefined;
  /**
   * Patterns of the modules to leave as they are, with `*` and `?`: of whole names, dotted prefixes or single components.
   * Default: the format's own choice, which a list replaces.
   */
  readonly skip?: readonly string[] | undefined;
  /** dtype that all weights are converted to first; "auto", the default, takes them as they are. */
  readonly dtype?: "auto" | FloatDType | undefined;
  /** Replaces the model that is at `out`. */
  readonly overwrite?: boolean | undefined;
  /** The most bytes of tensors in one file. Default 5 GB. */
  readonly maxShardBytes?: number | undefined;
  /** Default: one a core. */
  readonly threads?: number | undefined;
  readonly plugins?: readonly string[] | undefined;
  readonly loadFormat?: string | undefined;
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
  /** Called when a tensor is done. */
  readonly onProgress?: ((progress: QuantizeProgress) => void) | undefined;
  /** Gives up, and leaves nothing behind, when aborted. */
  readonly signal?: AbortSignal | undefined;
}

const DEFAULT_SHARD_BYTES = 5_000_000_000;

/**
 * Writes a model with quantized weights, in the files that the format's own library writes. Throws what
 * `quantizeCheckpoint` throws, and what `launch` throws until it starts ranks.
 */
export async function quantize(options: QuantizeOptions): Promise<QuantizeReport> {
  const { signal, revision, format, overwrite = false, dtype = "auto", onDownload, onProgress } = options;
  const out = resolve(options.out);
  const maxShardBytes = checkCount("maxShardBytes", options.maxShardBytes ?? DEFAULT_SHARD_BYTES);
  const threads = checkCount("threads", options.threads ?? availableParallelism());
  const convertTo = dtype === "auto" ? null : checkDtype("dtype", dtype);
  checkOutput(out, { overwrite });
  const plugins = resolvePlugins(options.plugins ?? []);
  const registries = await loadPlugins(plugins);
  registries.checkpointQuantizers.select(format);
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload });
  const loader = registries.modelLoaders.select(path, options.loadFormat);
  if (loader === dummyLoader) {
    throw new OptionError(
      "INVALID_OPTION",
      "expected loadFormat to be that of a model with weights but received dummy",
      {
        option: "loadFormat",
        received: loader.format,
      },
    );
  }
  return quantizeCheckpoint({
    path,
    loader,
    description: await loader.describe(path),
    registries,
    plugins,
    format,
    options: options.options ?? {},
    skip: options.skip ?? null,
    dtype: convertTo,
    out,
    overwrite,
    maxShardBytes,
    threads,
    onProgress,
    signal,
  });
}

/** How a model is saved as a sharded state. `model` and `out` are needed. */
export interface ShardOptions {
  /** A directory, a file, or a hub id `org/name[@revision]`. */
  readonly model: string;
  readonly revision?: string | undefined;
  /** Ranks to save it for; it loads at any other number as well. Default 1. */
  readonly tensorParallelSize?: number | undefined;
  /** Directory to make. It appears when it is complete. */
  readonly out: string;
  /** Replaces the model that is at `out`. */
  readonly overwrite?: boolean | undefined;
  /** The most bytes of tensors in one file. Default 5 GB. */
  readonly maxShardBytes?: number | undefined;
  /** Ranks that are loaded at a time. Default: one a core. */
  readonly threads?: number | undefined;
  readonly plugins?: readonly string[] | undefined;
  readonly loadFormat?: string | undefined;
  readonly quantization?: string | undefined;
  readonly quantizationOptions?: JsonObject | undefined;
  readonly dtype?: "auto" | FloatDType | undefined;
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
  /** Called when a rank is done. */
  readonly onProgress?: ((progress: ShardProgress) => void) | undefined;
  /** Gives up, and leaves nothing behind, when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Saves what each rank of a model would hold, quantized weights in execution format, so that loading it is reading it. The
 * state loads at any number of ranks, with the same values. Throws what `shardCheckpoint` throws, and what `launch` throws
 * until it starts ranks.
 */
export async function shard(options: ShardOptions): Promise<ShardReport> {
  const { signal, revision, overwrite = false, dtype = "auto", onDownload, onProgress } = options;
  const worldSize = checkWorldSize(options.tensorParallelSize ?? 1);
  const out = resolve(options.out);
  const maxFileBytes = checkCount("maxShardBytes", options.maxShardBytes ?? DEFAULT_SHARD_BYTES);
  const threads = checkCount("threads", options.threads ?? availableParallelism());
  checkOutput(out, { overwrite });
  const plugins = resolvePlugins(options.plugins ?? []);
  const registries = await loadPlugins(plugins);
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload });
  const loader = registries.modelLoaders.select(path, options.loadFormat);
  const description = await loader.describe(path);
  const config = selectFamily(description.config).parseConfig(description.config);
  const ranks: RankOptions = {
    path,
    loadFormat: loader.format,
    description,
    worldSize,
    quantization: registries.quantization.select(description.config, choiceOf(options)),
    dtype: dtype === "auto" ? config.dtype : checkDtype("dtype", dtype),
    kvCacheDtype: "f32",
    activations: "f32",
    ...LEAST_CAPACITY,
  };
  return shardCheckpoint({
    ranks,
    loader,
    registries,
    plugins,
    out,
    overwrite,
    maxFileBytes,
    threads,
    onProgress,
    signal,
  });
}

/** Adds what only the model's files tell to what the coordinator reports. */
function reporter(report: (progress: LoadProgress) => void, totalBytes: number): (progress: RankProgress) => void {
  return ({ rank, bytes }) => report({ rank, bytesRead: bytes, totalBytes });
}

/** Throws OptionError `INVALID_OPTION` for options of no method. */
function choiceOf({
  quantization,
  quantizationOptions = {},
}: Pick<LaunchOptions, "quantization" | "quantizationOptions">): QuantizationChoice | null {
  if (quantization !== undefined) return { method: quantization, options: quantizationOptions };
  const [option] = Object.keys(quantizationOptions);
  if (option === undefined) return null;
  throw new OptionError(
    "INVALID_OPTION",
    `expected the name of a method as quantization beside quantizationOptions, which have ${JSON.stringify(option)}, but received none`,
    { option: "quantization", expected: "a method", received: "none" },
  );
}

function checkPinning(value: unknown): boolean | undefined {
  if (value === undefined || typeof value === "boolean") return value;
  throw new OptionError("INVALID_OPTION", `expected pinning to be a boolean but received ${describeValue(value)}`, {
    option: "pinning",
    expected: "boolean",
    received: String(value),
  });
}

function checkRanks(value: number | "auto"): number | "auto" {
  return value === "auto" ? value : checkWorldSize(value);
}

function checkCount(option: string, value: unknown): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value > 0) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be a whole number of at least 1 but received ${describeValue(value)}`,
    { option, expected: "1..", received: String(value) },
  );
}

function checkActivations(value: unknown): Activations {
  if (typeof value === "string" && isActivations(value)) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected activations to be ${ACTIVATIONS.join(", ")} but received ${describeValue(value)}`,
    { option: "activations", expected: ACTIVATIONS.join("|"), received: String(value) },
  );
}

function checkDtype(option: string, value: unknown): FloatDType {
  if (typeof value === "string" && isDType(value) && isFloat(value)) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be f32, bf16 or f16 but received ${describeValue(value)}`,
    {
      option,
      expected: "f32|bf16|f16",
      received: String(value),
    },
  );
}
