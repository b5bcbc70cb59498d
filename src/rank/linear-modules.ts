/**
 * Which modules of a checkpoint are linear layers: asked of the model's layers, which are built and loaded without bytes, so
 * that whatever would keep the checkpoint from being loaded is said here.
 */
import { createShapeOnlyKernels } from "../kernels/shape-only.js";
import type { ModelDescription } from "../loading/model-loader.js";
import type { Registries } from "../loading/plugins.js";
import { selectFamily } from "../models/registry.js";
import type { LinearLayer } from "../quantization/contract.js";
import { loadRankModel } from "./rank-model.js";

export interface LinearModulesRequest {
  /** Local path of the model. */
  readonly path: string;
  /** Format of its loader. */
  readonly loadFormat: string;
  readonly description: ModelDescription;
  readonly registries: Registries;
  /** Names of the checkpoint's tensors. */
  readonly tensors: ReadonlySet<string>;
}

/**
 * Names of the linear modules, in the order of the layers and as the checkpoint has them: a layer that is fused on disk
 * is one module, and several where it is not. Embeddings are none.
 *
 * Reads headers, no weights. Throws as loading does: CheckpointError for a tensor that is missing, unexpected or of the
 * wrong shape, UnsupportedError for a model that is not known.
 */
export async function findLinearModules(request: LinearModulesRequest): Promise<readonly string[]> {
  const { path, loadFormat, description, registries, tensors } = request;
  const options = {
    path,
    loadFormat,
    // What is said of the quantization of weights that are read as floating-point numbers does not matter here.
    quantization: null,
    description,
    worldSize: 1,
    dtype: selectFamily(description.config).parseConfig(description.config).dtype,
    kvCacheDtype: "f32",
    activations: "f32",
    blockSize: 1,
    blocks: 1,
    maxModelLength: 1,
    limits: { maxTokens: 1, maxSequences: 1, maxBlocksPerSequence: 1, maxOutputs: 1, maxLogprobs: 0 },
  } as const;
  const { context } = await loadRankModel(options, 0, { registries, kernels: createShapeOnlyKernels() });
  return context.linears.flatMap(({ layer }) => (layer.kind === "embedding" ? [] : modulesOf(layer, tensors)));
}

function modulesOf({ prefix, parts }: LinearLayer, tensors: ReadonlySet<string>): readonly string[] {
  return tensors.has(`${prefix}.weight`) ? [prefix] : parts.map((part) => part.prefix);
}
