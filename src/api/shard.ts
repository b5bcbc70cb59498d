/** shard(): a model into files that hold what each rank would. */
import { availableParallelism } from "node:os";
import { resolveModel } from "../checkpoint/model-dir.js";
import { checkOutput } from "../checkpoint/output-directory.js";
import { type ShardProgress, type ShardReport, shardCheckpoint } from "../coordinator/shard-checkpoint.js";
import { checkWorldSize } from "../core/rank.js";
import { LEAST_CAPACITY } from "../engine/capacity.js";
import { readsWeights } from "../loading/dummy-loader.js";
import { loadPlugins, resolvePlugins } from "../loading/plugins.js";
import { selectFamily } from "../models/registry.js";
import type { RankOptions } from "../rank/rank-options.js";
import type { ModelSelection, QuantizationOptions } from "./model-selection.js";
import { checkCount, checkDtype, checkOut, choiceOf, DEFAULT_SHARD_BYTES } from "./option-checks.js";

/** How a model is saved as a sharded state. `model` and `out` are needed. */
export interface ShardOptions extends ModelSelection, QuantizationOptions {
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
  /** Called a few times a second, and when a rank is done. */
  readonly onProgress?: ((progress: ShardProgress) => void) | undefined;
}

/**
 * Saves what each rank of a model would hold, quantized weights in execution format, so that loading it is reading it. The
 * state loads at any number of ranks, with the same values. Throws what `shardCheckpoint` throws, and what `launch` throws
 * until it starts ranks.
 */
export async function shard(options: ShardOptions): Promise<ShardReport> {
  const { signal, revision, overwrite = false, dtype = "auto", onDownload, onProgress } = options;
  const worldSize = checkWorldSize(options.tensorParallelSize ?? 1);
  const out = checkOut(options.out);
  const maxFileBytes = checkCount("maxShardBytes", options.maxShardBytes ?? DEFAULT_SHARD_BYTES);
  const threads = checkCount("threads", options.threads ?? availableParallelism());
  checkOutput(out, { overwrite });
  const plugins = resolvePlugins(options.plugins ?? []);
  const registries = await loadPlugins(plugins);
  const weights = readsWeights(options.loadFormat);
  const { path } = await resolveModel(options.model, { signal, revision, onProgress: onDownload, weights });
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
