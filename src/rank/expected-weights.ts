/**
 * The checkpoint that a model's layers would take: asked of the layers themselves, built without bytes, so that no second
 * list of names and shapes exists.
 */
import { VirtualAllocator } from "../core/arena.js";
import { invariant } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { createShapeOnlyKernels } from "../kernels/shape-only.js";
import { LayerContext, type LinearModule, type WeightTarget } from "../layers/layer-context.js";
import { ModelMemory } from "../layers/model-memory.js";
import type { ExpectedTensor, ExpectedWeights } from "../loading/model-loader.js";
import type { ModelFamily } from "../models/model.js";
import { shapeOnly } from "../quantization/shape-only.js";
import { unquantized } from "../quantization/unquantized.js";

/** Ranks that share a thread share the config, and ask for the same. */
const known = new WeakMap<JsonObject, readonly ExpectedTensor[]>();

/** The unquantized weights of a model, worked out when they are asked for, once for a config. */
export function expectedWeights(family: ModelFamily, json: JsonObject, seed: number): ExpectedWeights {
  return {
    config: json,
    seed,
    tensors() {
      const tensors = known.get(json) ?? expectedTensors(family, json);
      known.set(json, tensors);
      return tensors;
    },
  };
}

/**
 * Name, dtype and whole shape of every tensor that an unquantized checkpoint of the model holds, in the order of the
 * layers. Parts of fused layers are named one by one. Throws as the family does for a config it cannot serve.
 */
export function expectedTensors(family: ModelFamily, json: JsonObject): readonly ExpectedTensor[] {
  const { dtype } = family.parseConfig(json);
  const context = layersWithoutBytes(family, json);
  const moduleOf = new Map(
    context.linears.flatMap((module) => module.parameters.map((each) => [each, module] as const)),
  );
  return [...context.targets].flatMap(([name, [target]]) => {
    invariant(target !== undefined, `${name} is declared by no layer`);
    const module = moduleOf.get(target.parameter);
    if (module !== undefined && isFusedName(target, module)) return [];
    return [{ name, dtype, shape: wholeShape(target, module) }];
  });
}

/** A model's layers on one rank, unquantized and built without bytes: what they are, and which tensors they take. */
export function layersWithoutBytes(family: ModelFamily, json: JsonObject): LayerContext {
  const kernels = createShapeOnlyKernels();
  const allocator = (name: string): VirtualAllocator => new VirtualAllocator(name);
  const context = new LayerContext({
    rank: 0,
    worldSize: 1,
    kernels,
    weights: allocator("expected"),
    quantization: shapeOnly(unquantized),
    dtype: family.parseConfig(json).dtype,
  });
  const memory = new ModelMemory({
    name: "expected",
    kernels,
    maxTokens: 1,
    maxPositions: 1,
    kvCacheDtype: "f32",
    blockSize: 1,
    blocks: 1,
    allocator,
  });
  family.create(json, context, memory);
  return context;
}

/** A fused layer also takes its tensors under its own name; the names of its parts say the same. */
function isFusedName({ shardId }: WeightTarget, { layer }: LinearModule): boolean {
  return shardId === null && layer.parts.length > 1;
}

function wholeShape({ parameter, shardId }: WeightTarget, module: LinearModule | undefined): readonly number[] {
  const { shape, outputDim } = parameter.spec;
  const part = module?.layer.parts.find((each) => each.shardId === shardId);
  if (part === undefined || outputDim === null) return shape;
  return shape.map((extent, dim) => (dim === outputDim ? part.outputSize : extent));
}
