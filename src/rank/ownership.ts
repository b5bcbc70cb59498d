/**
 * Who holds what, as plain data: read off the ranks' layers and parameters after loading, with or without bytes. What is
 * said here is what was done, not what was planned.
 */
import { type DType, dtypeBytes } from "../core/dtype.js";
import { tensorBytes } from "../core/tensor.js";
import type { LinearModule } from "../layers/layer-context.js";
import type { LoadedSlice, Parameter } from "../layers/parameter.js";
import { type Box, boxSize, cellsOf } from "../parallel/coverage.js";
import type { Range } from "../parallel/partition.js";
import type { LinearLayer, LinearPart, ShardId } from "../quantization/contract.js";
import type { RankModel } from "./rank-model.js";

/** How a layer deals a parameter out: by rows or columns, or it gives every rank all of it. */
export type ParameterSplit = "rows" | "columns" | "none";

export interface ParameterOwnership {
  /** `model.layers.0.self_attn.qkv_proj.weight` */
  readonly name: string;
  /** Linear layer or embedding that it belongs to; null for the weight of a norm. */
  readonly layer: string | null;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
  readonly split: ParameterSplit;
  /** Slices of checkpoint tensors that it holds. */
  readonly slices: readonly LoadedSlice[];
  /** The slices count in tensors that are this rank's shard already, as the loader made them. */
  readonly sourceIsLocal: boolean;
  /** It holds scales of blocks: where a boundary lies inside a block, both ranks hold its scale. */
  readonly blockScale: boolean;
}

/** Rows and columns that a rank computes with in one linear layer. */
export interface LayerOwnership {
  readonly prefix: string;
  readonly kind: LinearLayer["kind"];
  readonly inputSize: number;
  readonly inputs: Range;
  readonly parts: readonly LinearPart[];
}

export interface RankOwnership {
  readonly rank: number;
  readonly worldSize: number;
  /** Heads of the first attention layer; null in a model without any. */
  readonly queryHeads: Range | null;
  readonly kvHeads: Range | null;
  readonly layers: readonly LayerOwnership[];
  readonly parameters: readonly ParameterOwnership[];
  /** Bytes of all parameters, as they were loaded. */
  readonly parameterBytes: number;
  readonly kvCacheBytes: number;
  readonly activationBytes: number;
  /** Bytes of tensor data read from disk. */
  readonly bytesRead: number;
}

/** Elements of a checkpoint tensor that the same ranks hold. */
export interface HeldCell {
  readonly box: Box;
  /** In rank order. */
  readonly holders: readonly { readonly rank: number; readonly shardId: ShardId | null }[];
}

/** Who holds one checkpoint tensor in one parameter. */
export interface TensorOwnership {
  readonly tensor: string;
  readonly shape: readonly number[];
  /** dtype it is stored in. */
  readonly dtype: DType;
  readonly parameter: string;
  readonly layer: string | null;
  readonly split: ParameterSplit;
  readonly blockScale: boolean;
  /** They tile the tensor. */
  readonly cells: readonly HeldCell[];
}

export interface GroupOwnership {
  readonly worldSize: number;
  readonly ranks: readonly RankOwnership[];
  /** Without those whose source is each rank's own. */
  readonly tensors: readonly TensorOwnership[];
  /** By rank: bytes of its parameters that another rank holds as well. */
  readonly replicatedBytes: readonly number[];
  /** Bytes of all parameters, what several ranks hold counted once. */
  readonly uniqueBytes: number;
  /** Parameter bytes of the largest rank over the mean of all; 1 is even. */
  readonly imbalance: number;
}

/** What one loaded rank holds. */
export function rankOwnership({ rank, options, config, context, memory, report }: RankModel): RankOwnership {
  const moduleOf = new Map(
    context.linears.flatMap((module) => module.parameters.map((each) => [each, module] as const)),
  );
  const parameters = context.parameters.map((parameter) => parameterOwnership(parameter, moduleOf.get(parameter)));
  const attention = context.linears.find(({ layer }) => layer.kind === "qkv")?.layer;
  return {
    rank,
    worldSize: options.worldSize,
    queryHeads: headsOf(attention, "q", config.headSize),
    kvHeads: headsOf(attention, "k", config.headSize),
    layers: context.linears.map(({ layer }) => layerOwnership(layer)),
    parameters,
    parameterBytes: parameters.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    kvCacheBytes: memory.kvCacheBytes,
    activationBytes: memory.activationBytes,
    bytesRead: report.bytesRead,
  };
}

/** What a whole group holds, and how often. One entry a rank, in rank order. */
export function groupOwnership(ranks: readonly RankOwnership[]): GroupOwnership {
  const tensors = tensorsOf(ranks);
  const replicatedBytes = ranks.map(() => 0);
  let sharedTwice = 0;
  for (const { dtype, cells } of tensors) {
    for (const { box, holders } of cells) {
      if (holders.length < 2) continue;
      const sizeBytes = boxSize(box) * dtypeBytes(dtype);
      sharedTwice += (holders.length - 1) * sizeBytes;
      for (const { rank } of holders) replicatedBytes[rank] = (replicatedBytes[rank] ?? 0) + sizeBytes;
    }
  }
  const bytes = ranks.map(({ parameterBytes }) => parameterBytes);
  const total = bytes.reduce((sum, each) => sum + each, 0);
  return {
    worldSize: ranks.length,
    ranks,
    tensors,
    replicatedBytes,
    uniqueBytes: total - sharedTwice,
    imbalance: total === 0 ? 1 : (Math.max(...bytes) * ranks.length) / total,
  };
}

function parameterOwnership(parameter: Parameter, module: LinearModule | undefined): ParameterOwnership {
  const { name, spec, tensor, loaded } = parameter;
  return {
    name,
    layer: module?.layer.prefix ?? null,
    dtype: tensor.dtype,
    shape: tensor.shape,
    sizeBytes: tensorBytes(tensor),
    split: splitOf(parameter, module),
    slices: loaded,
    sourceIsLocal: spec.isSharded ?? false,
    blockScale: spec.blockScale !== undefined,
  };
}

function splitOf({ spec }: Parameter, module: LinearModule | undefined): ParameterSplit {
  if (module === undefined) return "none";
  const { kind } = module.layer;
  if (kind === "row") return spec.inputDim === null ? "none" : "columns";
  return kind === "replicated" || spec.outputDim === null ? "none" : "rows";
}

function layerOwnership({ prefix, kind, inputSize, inputs, parts }: LinearLayer): LayerOwnership {
  return { prefix, kind, inputSize, inputs, parts };
}

function headsOf(layer: LinearLayer | undefined, shardId: ShardId, headSize: number): Range | null {
  const part = layer?.parts.find((each) => each.shardId === shardId);
  return part === undefined ? null : { start: part.rows.start / headSize, end: part.rows.end / headSize };
}

interface Held {
  readonly rank: number;
  readonly slice: LoadedSlice;
}

function tensorsOf(ranks: readonly RankOwnership[]): readonly TensorOwnership[] {
  const groups = new Map<string, { readonly parameter: ParameterOwnership; readonly held: Held[] }>();
  for (const { rank, parameters } of ranks) {
    for (const parameter of parameters) {
      if (parameter.sourceIsLocal) continue;
      for (const slice of parameter.slices) {
        const key = `${parameter.name}\n${slice.tensor}`;
        const group = groups.get(key) ?? { parameter, held: [] };
        group.held.push({ rank, slice });
        groups.set(key, group);
      }
    }
  }
  return [...groups.values()].map(({ parameter, held }) => tensorOwnership(parameter, held));
}

function tensorOwnership(parameter: ParameterOwnership, held: readonly Held[]): TensorOwnership {
  const { name, layer, split, blockScale, dtype } = parameter;
  const { tensor = "", shape = [] } = held[0]?.slice ?? {};
  const boxes = held.map(({ slice }) => slice.ranges);
  const cells = cellsOf(shape, boxes).map(({ box, owners }) => {
    const holders = owners.flatMap((owner) => {
      const holder = held[owner];
      return holder === undefined ? [] : [{ rank: holder.rank, shardId: holder.slice.shardId }];
    });
    return { box, holders };
  });
  return { tensor, shape, dtype, parameter: name, layer, split, blockScale, cells };
}
