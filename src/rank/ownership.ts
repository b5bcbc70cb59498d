/**
 * Who holds what, as plain data: read off the ranks' layers and parameters after loading, with or without bytes. What is
 * said here is what was done, not what was planned.
 */
import { type DType, dtypeBytes } from "../core/dtype.js";
import { elementCount, shapesEqual, tensorBytes } from "../core/tensor.js";
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

/** A rank that holds some elements. */
export interface Holder {
  readonly rank: number;
  readonly shardId: ShardId | null;
  /** Bytes that the elements take in the rank's parameter. */
  readonly sizeBytes: number;
}

/** Elements of a checkpoint tensor that the same ranks hold. */
export interface HeldCell {
  readonly box: Box;
  /** In rank order. */
  readonly holders: readonly Holder[];
}

/** Who holds one checkpoint tensor in one parameter. */
export interface TensorOwnership {
  readonly tensor: string;
  /** Of the whole tensor; where ranks see it cut differently finely, cut so finely that all of theirs fit. */
  readonly shape: readonly number[];
  /** dtype it is stored in. */
  readonly dtype: DType;
  readonly parameter: string;
  readonly layer: string | null;
  readonly split: ParameterSplit;
  readonly blockScale: boolean;
  /** Ranks that have the parameter: a format may store the same weight differently on different ranks. */
  readonly ranks: readonly number[];
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
  for (const { holders } of tensors.flatMap(({ cells }) => cells)) {
    if (holders.length < 2) continue;
    for (const { rank, sizeBytes } of holders) replicatedBytes[rank] = (replicatedBytes[rank] ?? 0) + sizeBytes;
    const sizes = holders.map(({ sizeBytes }) => sizeBytes);
    sharedTwice += sizes.reduce((sum, each) => sum + each, 0) - Math.max(...sizes);
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
  readonly dtype: DType;
}

/** What ranks hold of one checkpoint tensor in one parameter. */
interface Group {
  readonly parameter: ParameterOwnership;
  readonly tensor: string;
  readonly held: Held[];
}

function tensorsOf(ranks: readonly RankOwnership[]): readonly TensorOwnership[] {
  // By parameter, then by tensor: names of both together would be made once more for every rank.
  const groups = new Map<string, Map<string, Group>>();
  const having = new Map<string, number[]>();
  for (const { rank, parameters } of ranks) {
    for (const parameter of parameters) {
      if (parameter.sourceIsLocal) continue;
      const { name, dtype, slices } = parameter;
      const others = having.get(name);
      if (others === undefined) having.set(name, [rank]);
      else others.push(rank);
      const ofParameter = groups.get(name) ?? new Map<string, Group>();
      groups.set(name, ofParameter);
      for (const slice of slices) {
        const { tensor } = slice;
        const group = ofParameter.get(tensor) ?? { parameter, tensor, held: [] };
        group.held.push({ rank, slice, dtype });
        ofParameter.set(tensor, group);
      }
    }
  }
  return [...groups.values()].flatMap((ofParameter) => {
    return Array.from(ofParameter.values(), (group) => tensorOwnership(group, having.get(group.parameter.name) ?? []));
  });
}

function tensorOwnership({ parameter, tensor, held }: Group, ranks: readonly number[]): TensorOwnership {
  const { name, layer, split, blockScale, dtype } = parameter;
  const shape = commonShape(held);
  const cells = cellsOf(
    shape,
    held.map(({ slice }) => refined(slice, shape)),
  ).map(({ box, owners }) => {
    const holders = owners.flatMap((owner) => {
      const holder = held[owner];
      return holder === undefined ? [] : [holderOf(holder, box, shape)];
    });
    return { box, holders };
  });
  return { tensor, shape, dtype, parameter: name, layer, split, blockScale, ranks, cells };
}

function holderOf({ rank, slice, dtype }: Held, box: Box, shape: readonly number[]): Holder {
  const refinement = elementCount(shape) / Math.max(1, elementCount(slice.shape));
  return { rank, shardId: slice.shardId, sizeBytes: (boxSize(box) / refinement) * dtypeBytes(dtype) };
}

/**
 * A format may show each rank a tensor of its own making: the same dimensions, cut as finely as that rank needs. Then
 * ranks are compared on the coarsest grid that all of theirs are multiples of.
 */
function commonShape(held: readonly Held[]): readonly number[] {
  const [first, ...others] = held.map(({ slice }) => slice.shape);
  return others.reduce<readonly number[]>((shape, other) => {
    if (shapesEqual(shape, other)) return shape;
    return shape.map((extent, dim) => leastCommonMultiple(extent, other[dim] ?? extent));
  }, first ?? []);
}

function refined({ shape: own, ranges }: LoadedSlice, shape: readonly number[]): Box {
  if (shapesEqual(own, shape)) return ranges;
  return ranges.map(({ start, end }, dim) => {
    const extent = own[dim] ?? 0;
    const factor = extent === 0 ? 1 : (shape[dim] ?? extent) / extent;
    return { start: start * factor, end: end * factor };
  });
}

function leastCommonMultiple(a: number, b: number): number {
  if (a === b || b === 0) return a;
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
