/** launch(): finds the model, loads plugins, sizes the engine and starts the ranks. */
import { resolveModel } from "../checkpoint/model-dir.js";
import { weightBytes } from "../checkpoint/weight-bytes.js";
import { type CollectivePayload, checkCollectivePayload } from "../collectives/payload.js";
import { type RankProgress, startCoordinator } from "../coordinator/coordinator.js";
import { groupLoadProfile, profileOrigin } from "../coordinator/group-load-profile.js";
import { endThreads, RANK_ENTRY, type StartedThread, startThreads } from "../coordinator/started-thread.js";
import type { CoordinatorTimeouts } from "../coordinator/timeouts.js";
import type { FloatDType } from "../core/dtype.js";
import type { JsonObject } from "../core/json.js";
import { createLogger, type Logger } from "../core/logger.js";
import { readMemory } from "../core/machine-memory.js";
import { readTopology } from "../core/machine-topology.js";
import { checkWorldSize } from "../core/rank.js";
import { type CapacityOptions, planCapacity } from "../engine/capacity.js";
import { createEngine, type Engine, prepareText } from "../engine/engine.js";
import type { Activations } from "../kernels/activation-levels.js";
import { checkKvCacheDtype, type KvCacheDType } from "../kernels/kv-cache-dtype.js";
import { createKernels } from "../kernels/select.js";
import { kernelSelection } from "../kernels/selection.js";
import { readsWeights } from "../loading/dummy-loader.js";
import type { ModelDescription, ModelLoader } from "../loading/model-loader.js";
import { loadPlugins, type Registries, resolvePlugins } from "../loading/plugins.js";
import type { ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import { checkThreadsPerRank } from "../parallel/placement.js";
import { chooseWorldSize } from "../parallel/world-size.js";
import type { RankOptions } from "../rank/rank-options.js";
import { MAX_STEPS_IN_FLIGHT } from "../rank/step-channel.js";
import type { ModelSelection, QuantizationOptions } from "./model-selection.js";
import { checkActivations, checkDtype, checkPinning, checkRanks, choiceOf } from "./option-checks.js";

/** How far one rank is with loading. */
export interface LoadProgress {
  readonly rank: number;
  /** Bytes it has read. */
  readonly bytesRead: number;
  /** Bytes of all weight files: about what all ranks read together. */
  readonly totalBytes: number;
}

/** How an engine is launched. Only `model` is needed. */
export interface LaunchOptions extends ModelSelection, QuantizationOptions, CapacityOptions {
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
  /**
   * What the KV cache holds keys and values in. Default f32: exact. `int8` is codes with a scale for each of them and head
   * (kv-cache-dtype.ts).
   */
  readonly kvCacheDtype?: KvCacheDType | undefined;
  /**
   * How activations meet weights: `f32` as they are; `bf16` rounded where weights are bf16; `int16` and `int8` rounded to whole
   * numbers in blocks where weights are codes; `auto`, the default, by weight, instruction set and the rows of a call
   * (activation-levels.ts). What is rounded is multiplied faster.
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
  /** Called a few times a second while ranks load. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
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
  const checked: CheckedOptions = {
    threadsPerRank: checkThreadsPerRank(options.threadsPerRank ?? "auto"),
    pinning: checkPinning(options.pinning),
    kvCacheDtype: checkKvCacheDtype(options.kvCacheDtype ?? "f32"),
    activations: checkActivations(options.activations ?? "auto"),
    collectivePayload: checkCollectivePayload(options.collectivePayload ?? "f32"),
    dtype: options.dtype === undefined || options.dtype === "auto" ? null : checkDtype("dtype", options.dtype),
    logger: createLogger(options.logLevel),
    plugins: resolvePlugins(options.plugins ?? []),
  };
  const { logger, plugins, activations } = checked;
  const registries = await loadPlugins(plugins);
  const { signal, revision, onDownload } = options;
  const weights = readsWeights(options.loadFormat);
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload, weights });
  const originMs = profileOrigin();
  const loader = registries.modelLoaders.select(path, options.loadFormat);
  // Ranks choose kernels of their own, alike; here for one warning instead of one a rank, and to fail before they start.
  createKernels(activations, (message) => logger.warn(message));
  logger.debug(kernelSelection(), "selected the kernels");
  const { onProgress } = options;
  const report = onProgress === undefined ? undefined : reporter(onProgress, weightBytes(path));
  // A thread loads its code while the model is described, if it is known how many there will be.
  const early = wanted === "auto" ? null : await startThreads(checkWorldSize(wanted), RANK_ENTRY, plugins);
  let launchable: Launchable;
  try {
    launchable = await prepare(options, checked, { path, loader, registries, wanted });
  } catch (error) {
    await endThreads(early ?? []);
    throw error;
  }
  return start(options, checked, launchable, { started: early ?? [], originMs, report });
}

/** Options that were checked, with their defaults. */
interface CheckedOptions {
  readonly threadsPerRank: number | "auto";
  readonly pinning: boolean | undefined;
  readonly kvCacheDtype: KvCacheDType;
  readonly activations: Activations;
  readonly collectivePayload: CollectivePayload;
  /** null: config.json's. */
  readonly dtype: FloatDType | null;
  readonly logger: Logger;
  readonly plugins: readonly string[];
}

/** A model on disk, and who reads it. */
interface FoundModel {
  readonly path: string;
  readonly loader: ModelLoader;
  readonly registries: Registries;
  readonly wanted: number | "auto";
}

/** What ranks are told, and what the model says of itself. */
interface Launchable {
  readonly ranks: RankOptions;
  readonly config: ModelConfig;
  /** All that the model says of itself: to be asked while ranks load. */
  readonly describe: () => Promise<ModelDescription>;
}

/** Everything that there is to know before ranks load. */
async function prepare(
  options: LaunchOptions,
  { kvCacheDtype, activations, collectivePayload, dtype, logger }: CheckedOptions,
  { path, loader, registries, wanted }: FoundModel,
): Promise<Launchable> {
  const { config: json, describe } = await readModel(loader, path);
  const config = selectFamily(json).parseConfig(json);
  const chosen = wanted === "auto" ? chooseWorldSize(readTopology(), readMemory(), config.kvHeads) : null;
  if (chosen !== null) logger.info(chosen, "chose the number of ranks");
  const worldSize = chosen?.worldSize ?? checkWorldSize(wanted);
  const ranks: RankOptions = {
    path,
    loadFormat: loader.format,
    description: { config: json, generationConfig: null, tokenizer: null, chatTemplate: null },
    worldSize,
    quantization: registries.quantization.select(json, choiceOf(options)),
    dtype: dtype ?? config.dtype,
    kvCacheDtype,
    activations,
    collectivePayload,
    ...planCapacity(config, options, worldSize, kvCacheDtype),
    ...(options.verifyChecksums === undefined ? {} : { verifyChecksums: options.verifyChecksums }),
  };
  return { ranks, config, describe };
}

/** The config, and all that the model says of itself: later where the loader knows a quicker way to the config, else at once. */
async function readModel(
  loader: ModelLoader,
  path: string,
): Promise<{ readonly config: JsonObject; readonly describe: () => Promise<ModelDescription> }> {
  if (loader.readConfig !== undefined) {
    return { config: await loader.readConfig(path), describe: () => loader.describe(path) };
  }
  const description = await loader.describe(path);
  return { config: description.config, describe: async () => description };
}

interface StartContext {
  /** Threads that were started already; none if the coordinator is to start them. */
  readonly started: readonly StartedThread[];
  readonly originMs: number;
  readonly report: ((progress: RankProgress) => void) | undefined;
}

/** Starts the ranks, which take over what was started, and prepares the model's text while they load. */
async function start(
  options: LaunchOptions,
  { plugins, logger, threadsPerRank, pinning }: CheckedOptions,
  { ranks, config, describe }: Launchable,
  { started, originMs, report }: StartContext,
): Promise<Engine> {
  const { signal } = options;
  const profiled = options.loadProfile === true;
  const unprepared = new AbortController();
  const starting = startCoordinator({
    ranks,
    config,
    plugins,
    logger,
    started,
    threadsPerRank,
    pinning,
    ...(options.timeouts === undefined ? {} : { timeouts: options.timeouts }),
    ...(options.verifyCollectives === undefined ? {} : { verifyCollectives: options.verifyCollectives }),
    stepsInFlight: MAX_STEPS_IN_FLIGHT,
    ...(options.profileSteps === undefined ? {} : { profileSteps: options.profileSteps }),
    ...(report === undefined ? {} : { onProgress: report }),
    ...(profiled ? { loadProfileOriginMs: originMs } : {}),
    signal: signal === undefined ? unprepared.signal : AbortSignal.any([signal, unprepared.signal]),
  });
  // While ranks load; if either fails, so does the launch, with nothing left of the ranks.
  const text = describe().then((description) => prepareText(description, config));
  text.catch(() => unprepared.abort());
  const executor = await starting.catch(async (error: unknown) => {
    if (unprepared.signal.aborted) await text;
    throw error;
  });
  try {
    const { model } = options;
    const loadProfile = profiled ? groupLoadProfile(executor.reports, ranks, { model, originMs }) : undefined;
    return createEngine({ executor, text: await text, logger, loadProfile });
  } catch (error) {
    await executor.close();
    throw error;
  }
}

/** Adds what only the model's files tell to what the coordinator reports. */
function reporter(report: (progress: LoadProgress) => void, totalBytes: number): (progress: RankProgress) => void {
  return ({ rank, bytes }) => report({ rank, bytesRead: bytes, totalBytes });
}
