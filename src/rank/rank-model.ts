/** One rank's part of a model: built, partitioned and loaded. What runs it is model-runner.ts. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { checkNowAndThen, type FileVersion } from "../checkpoint/open-file.js";
import type { ReadGroup, SharedReads } from "../checkpoint/shared-reads.js";
import { ArenaAllocator, VirtualAllocator } from "../core/arena.js";
import type { Logger } from "../core/logger.js";
import type { Kernels } from "../kernels/kernels.js";
import { LayerContext } from "../layers/layer-context.js";
import { type AllocatorFactory, ModelMemory } from "../layers/model-memory.js";
import type { PlacementObserver } from "../layers/shard-placement.js";
import type { PackedLoadRecord } from "../loading/load-record.js";
import type { LoadRecorder } from "../loading/load-recorder.js";
import { loadWeights } from "../loading/load-weights.js";
import type { CheckpointReader } from "../loading/model-loader.js";
import type { Registries } from "../loading/plugins.js";
import type { Model, ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import { shapeOnly } from "../quantization/shape-only.js";
import { unquantized } from "../quantization/unquantized.js";
import { expectedWeights } from "./expected-weights.js";
import type { RankOptions } from "./rank-options.js";
import { helperIds } from "./rank-threads.js";

/** How a rank was loaded. Plain data. */
export interface RankReport {
  readonly rank: number;
  /** Milliseconds from opening the checkpoint to the last weight being ready. */
  readonly loadMs: number;
  /** Bytes of tensor data read from disk. */
  readonly bytesRead: number;
  readonly parameterBytes: number;
  /** Bytes reserved for the KV cache. */
  readonly kvCacheBytes: number;
  /** What this rank's share of verifying checksums took; 0 where the checkpoint has none. Part of loadMs. */
  readonly verifyMs: number;
  /** What it read, so that ranks can be compared. */
  readonly files: readonly FileVersion[];
  /** Where the time went; there if it was asked for. */
  readonly profile?: PackedLoadRecord;
}

/** What a rank reads in place of the checkpoint that its loader opened. */
export type CheckpointInterceptor = (opened: Checkpoint) => Checkpoint;

/** What a rank is given besides its options. */
export interface LoadDependencies {
  readonly registries: Registries;
  /** With shape-only kernels nothing is read and nothing stored: tensors are virtual. */
  readonly kernels: Kernels;
  /** Where tensors come from; arenas by default. */
  readonly allocator?: AllocatorFactory;
  /** Stands between the rank and the checkpoint that its loader opened. */
  readonly intercept?: CheckpointInterceptor | undefined;
  /** Called while loading with the bytes read so far. */
  readonly onProgress?: (bytesRead: number) => void;
  readonly observer?: PlacementObserver;
  readonly logger?: Logger;
  /** Records how loading goes; `report.profile` is what it recorded. */
  readonly recorder?: LoadRecorder | undefined;
  /** How the ranks of a group share what several of them load. */
  readonly shared?: SharedReads | undefined;
}

export interface RankModel {
  readonly rank: number;
  readonly options: RankOptions;
  readonly config: ModelConfig;
  /** Parameters, layers, and what they take. */
  readonly context: LayerContext;
  readonly memory: ModelMemory;
  readonly model: Model;
  readonly allocator: AllocatorFactory;
  /** Checkpoint tensors that the family knows and does not use. */
  readonly ignored: readonly string[];
  readonly report: RankReport;
}

/** Builds and loads one rank's part of a model. Throws CheckpointError, PartitionError, PluginError, UnsupportedError. */
export async function loadRankModel(
  options: RankOptions,
  rank: number,
  dependencies: LoadDependencies,
): Promise<RankModel> {
  const {
    registries,
    kernels,
    onProgress,
    observer,
    logger,
    recorder,
    shared,
    allocator = allocatorFor(kernels),
  } = dependencies;
  const { config: json } = options.description;
  const started = performance.now();
  const family = selectFamily(json);
  const config = family.parseConfig(json);
  const weights = allocator(`rank${rank}.weights`);
  const memory = new ModelMemory({
    name: `rank${rank}`,
    kernels,
    maxTokens: options.limits.maxTokens,
    maxPositions: options.maxModelLength,
    kvCacheDtype: options.kvCacheDtype,
    blockSize: options.blockSize,
    blocks: options.blocks,
    allocator,
  });
  const loader = registries.modelLoaders.select(options.path, options.loadFormat);
  const reader: CheckpointReader = {
    rank,
    worldSize: options.worldSize,
    verifyChecksums: kernels.backend !== "shape-only" && (options.verifyChecksums ?? true),
    ...(recorder === undefined ? {} : { observer: recorder }),
  };
  if (recorder !== undefined) recorder.countSystem(kernels.backend === "native" ? helperIds() : []);
  recorder?.enter("index", "headers");
  const opened = await loader.open(options.path, expectedWeights(family, json, options.weightSeed ?? 0), reader);
  recorder?.leave();
  const checkpoint = dependencies.intercept?.(opened) ?? opened;
  try {
    const { worldSize, dtype } = options;
    const selected = options.quantization;
    recorder?.enter("other", "layers");
    const quantization =
      selected === null ? unquantized : registries.quantization.create(selected, checkpoint, groupOf(options, shared));
    const context = new LayerContext({
      rank,
      worldSize,
      kernels,
      weights,
      quantization: kernels.backend === "shape-only" ? shapeOnly(quantization) : quantization,
      dtype,
      shared,
      ...(observer === undefined ? {} : { observer }),
    });
    const model = family.create(json, context, memory);
    const shown = quantization.checkpoint ?? checkpoint;
    recorder?.leave();
    const { openFiles = [] } = opened;
    const checkFiles = checkNowAndThen(openFiles);
    const making = selected?.origin === "user" ? "quantize" : "shard";
    const { ignored } = loadWeights(context, recorder?.watch(shown, checkpoint, making) ?? shown, {
      ignores: (name) => family.ignores(name, json),
      repeats: (name) => family.repeats(name, json),
      stored: checkpoint,
      onProgress() {
        checkFiles();
        onProgress?.(checkpoint.bytesRead);
      },
      ...(logger === undefined ? {} : { logger }),
      ...(recorder === undefined ? {} : { observer: recorder }),
    });
    for (const file of openFiles) file.checkUnchanged();
    const memoryBytes = { parameterBytes: weights.usedBytes, kvCacheBytes: memory.kvCacheBytes };
    const report: RankReport = {
      rank,
      loadMs: performance.now() - started,
      bytesRead: checkpoint.bytesRead,
      ...memoryBytes,
      verifyMs: opened.verification?.ms ?? 0,
      files: openFiles.map(({ path, version }) => ({ path, version })),
      ...(recorder === undefined ? {} : { profile: recorder.finish(memoryBytes) }),
    };
    return { rank, options, config, context, memory, model, allocator, ignored, report };
  } finally {
    checkpoint.close();
  }
}

function groupOf({ worldSize }: RankOptions, reads: SharedReads | undefined): ReadGroup | undefined {
  return reads === undefined ? undefined : { worldSize, reads };
}

function allocatorFor(kernels: Kernels): AllocatorFactory {
  if (kernels.backend === "shape-only") return (name) => new VirtualAllocator(name);
  return (name, chunkBytes) => new ArenaAllocator(name, chunkBytes);
}
