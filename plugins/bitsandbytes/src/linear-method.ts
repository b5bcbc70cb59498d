/**
 * The linear method of bitsandbytes weights. What is on disk becomes an execution format by being loaded: codes are the
 * kernels' codes already, scales are laid out by the view of the checkpoint (view.ts). Nothing is repacked.
 */
import {
  type ExecutionWeight,
  InternalError,
  type Kernels,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type LoadedWeights,
  type Operand,
  type ParameterSpec,
  rangeSize,
  type Tensor,
  type WeightCreation,
} from "shardloom/plugin";
import { INT8_MULTIPLIER } from "./quantize-int8.js";
import type { RankResources } from "./rank-resources.js";
import { rowIndexer } from "./row-indexer.js";
import type { Segment } from "./segments.js";

/** Names of what is loaded, below the name of a module. */
export const PARAMETER = { weight: "weight", absmax: "weight.absmax", scales: "SCB" } as const;

/**
 * Whether a layer loads codes in the shape they have on disk, through a shard indexer. Layers of one matrix have no shard
 * ids to index; row-parallel ones cut inside rows. These load codes row by row.
 */
export function isIndexed({ kind }: LinearLayer): boolean {
  return kind === "merged" || kind === "qkv";
}

/** A segment once it is loaded. */
interface Loaded {
  readonly segment: Segment;
  readonly weight: LinearWeight;
}

export class QuantizedLinearMethod implements LinearMethod {
  readonly recordable: boolean = true;
  protected readonly resources: RankResources;
  #segments: readonly Segment[];
  #loaded: readonly Loaded[] = [];

  constructor(segments: readonly Segment[], resources: RankResources) {
    this.#segments = segments;
    this.resources = resources;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    for (const segment of this.#segments) {
      for (const spec of parameters(segment, layer, this.#segments.length > 1)) creation.addParameter(spec);
    }
    // The loaded weights are known to whoever loads; a method that kept them would keep the checkpoint.
    this.#segments = this.#segments.map((segment) => ({ ...segment, weights: [] }));
  }

  processWeightsAfterLoading(weights: LoadedWeights, layer: LinearLayer): void {
    this.#loaded = this.#segments.map((segment) => {
      const weight = bindSegment(segment, weights, layer, this.resources);
      return { segment, weight: this.prepare(weights.kernels, weight) };
    });
  }

  /** The weight as `apply` passes it to the kernels. */
  protected prepare(kernels: Kernels, weight: LinearWeight): LinearWeight {
    return kernels.prepareLinear(weight);
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.#loaded.length === 0) throw new InternalError("a linear layer was used before its weights were processed");
    for (const { segment, weight } of this.#loaded) {
      kernels.linear(out, x, weight, bias, rows, segment.firstRow);
    }
  }

  embed(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    const [only, ...others] = this.#loaded;
    if (only === undefined || others.length > 0) {
      throw new InternalError(`expected an embedding of one weight but it has ${this.#loaded.length}`);
    }
    kernels.embedding(out, ids, only.weight, rows, firstId);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#loaded.map(({ segment, weight }) => ({ firstRow: segment.firstRow, weight }));
  }
}

/** What a segment loads. */
function parameters(segment: Segment, layer: LinearLayer, several: boolean): readonly ParameterSpec[] {
  const { rows, storage } = segment;
  const inputs = rangeSize(layer.inputs);
  const common = { ...partsOf(segment, several), outputDim: 0 };
  const matrix = { ...common, name: PARAMETER.weight, shape: [rows, inputs], inputDim: 1 };
  switch (storage.kind) {
    case "plain":
      return [{ ...matrix, dtype: layer.dtype }];
    case "values":
      return [{ ...matrix, dtype: "f32" }];
    case "int8":
      return [
        { ...matrix, dtype: "i8" },
        { ...common, name: PARAMETER.scales, dtype: "f32", shape: [rows], inputDim: null },
      ];
    case "code4": {
      const { group } = storage;
      const scales = { ...matrix, name: PARAMETER.absmax, dtype: "f32", shape: [rows, inputs / group] } as const;
      const blockScale = { outputs: 1, inputs: group };
      return [codes(segment, layer, common), { ...scales, blockScale }];
    }
  }
}

function codes(
  { rows, parts }: Segment,
  layer: LinearLayer,
  common: Pick<ParameterSpec, "parts" | "outputDim">,
): ParameterSpec {
  const inputs = rangeSize(layer.inputs);
  const spec = { ...common, name: PARAMETER.weight, dtype: "u8" } as const;
  if (!isIndexed(layer)) {
    return { ...spec, shape: [rows, inputs / 2], inputDim: 1, packed: { dim: 1, factor: 2 } };
  }
  const name = `${parts[0]?.prefix ?? layer.prefix}.${PARAMETER.weight}`;
  return { ...spec, shape: [(rows * inputs) / 2, 1], inputDim: null, shardIndexer: rowIndexer(inputs, name) };
}

function partsOf({ parts }: Segment, several: boolean): Pick<ParameterSpec, "parts"> {
  if (!several) return {};
  return { parts: parts.map(({ shardId }) => shardId).filter((shardId) => shardId !== null) };
}

function bindSegment(
  { rows, parts, storage }: Segment,
  weights: LoadedWeights,
  layer: LinearLayer,
  resources: RankResources,
): LinearWeight {
  const { kernels } = weights;
  const inputs = rangeSize(layer.inputs);
  const tensorOf = (name: string): Tensor => weights.tensor(name, parts[0]?.shardId ?? undefined);
  const weight = tensorOf(PARAMETER.weight);
  switch (storage.kind) {
    case "plain":
    case "values":
      return { format: "dense", matrix: kernels.bind(weight) };
    case "int8": {
      const codes = kernels.bind(weight);
      const scales = kernels.bind(tensorOf(PARAMETER.scales));
      return { format: "int8", codes, scales, minimums: null, blockSize: inputs, multiplier: INT8_MULTIPLIER };
    }
    case "code4": {
      // The bytes of the codes in either shape are the same.
      const codes = kernels.bind({ ...weight, shape: [rows, inputs / 2] });
      const scales = kernels.bind(tensorOf(PARAMETER.absmax));
      const codebook = resources.codebook(storage.type, weights);
      return { format: "code4", codes, codebook, scales, minimums: null, blockSize: storage.group };
    }
  }
}
