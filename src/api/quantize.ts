/** quantize(): a model into files with quantized weights. */
import { availableParallelism } from "node:os";
import { resolveModel } from "../checkpoint/model-dir.js";
import { checkOutput } from "../checkpoint/output-directory.js";
import { type QuantizeProgress, type QuantizeReport, quantizeCheckpoint } from "../coordinator/quantize-checkpoint.js";
import type { FloatDType } from "../core/dtype.js";
import { OptionError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { dummyLoader } from "../loading/dummy-loader.js";
import { loadPlugins, resolvePlugins } from "../loading/plugins.js";
import type { ModelSelection } from "./model-selection.js";
import { checkCount, checkDtype, checkOut, DEFAULT_SHARD_BYTES } from "./option-checks.js";

/** How a model is quantized. `model`, `out` and `format` are needed. */
export interface QuantizeOptions extends ModelSelection {
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
  /** Called when a tensor is done. */
  readonly onProgress?: ((progress: QuantizeProgress) => void) | undefined;
}

/**
 * Writes a model with quantized weights, in the files that the format's own library writes. Throws what
 * `quantizeCheckpoint` throws, and what `launch` throws until it starts ranks.
 */
export async function quantize(options: QuantizeOptions): Promise<QuantizeReport> {
  const { signal, revision, format, overwrite = false, dtype = "auto", onDownload, onProgress } = options;
  const out = checkOut(options.out);
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
