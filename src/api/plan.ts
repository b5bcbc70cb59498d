/** plan(): what ranks would own, without a weight. */
import { resolveModel } from "../checkpoint/model-dir.js";
import { type CollectivePayload, checkCollectivePayload } from "../collectives/payload.js";
import type { CapacityOptions } from "../engine/capacity.js";
import { type ModelPlan, planModel } from "../engine/model-plan.js";
import { checkKvCacheDtype, type KvCacheDType } from "../kernels/kv-cache-dtype.js";
import { loadPlugins, resolvePlugins } from "../loading/plugins.js";
import { checkThreadsPerRank } from "../parallel/placement.js";
import type { ModelSelection, QuantizationOptions } from "./model-selection.js";
import { checkCount, checkDtype, checkPinning, checkRanks, choiceOf } from "./option-checks.js";

/** What is planned. Only `model` is needed; sizes are those of an engine. */
export interface PlanOptions extends ModelSelection, QuantizationOptions, CapacityOptions {
  /** As for launch(), or a config.json without weights. */
  readonly model: string;
  /** As for launch(). Default 1. */
  readonly tensorParallelSize?: number | "auto" | undefined;
  /** As for launch(): the plan says what ranks would get on this machine. */
  readonly threadsPerRank?: number | "auto" | undefined;
  readonly pinning?: boolean | undefined;
  readonly kvCacheDtype?: KvCacheDType | undefined;
  readonly collectivePayload?: CollectivePayload | undefined;
  /** Memory that everything has to fit into, in bytes. Default: what this process may use. */
  readonly memoryBytes?: number | undefined;
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
  const kvCacheDtype = checkKvCacheDtype(options.kvCacheDtype ?? "f32");
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
