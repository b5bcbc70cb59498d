/**
 * Layers of one rank without a model: what a test of a quantization format needs to see its linear methods at work, at any
 * world size and with any cut, through the weight loaders that models use.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { ArenaAllocator } from "../core/arena.js";
import type { FloatDType } from "../core/dtype.js";
import { dequantize } from "../kernels/execution-format.js";
import type { Kernels } from "../kernels/kernels.js";
import { createReferenceKernels } from "../kernels/reference.js";
import { LayerContext, type LinearModule } from "../layers/layer-context.js";
import { loadWeights } from "../loading/load-weights.js";
import { rangeSize } from "../parallel/partition.js";
import type { LinearLayer, LinearPart, QuantizationConfig } from "../quantization/contract.js";
import { unquantized } from "../quantization/unquantized.js";

export interface LoadLayersOptions {
  readonly rank: number;
  readonly worldSize: number;
  /** Where weights come from; through the config's own view of it, if it has one. */
  readonly checkpoint: Checkpoint;
  /** Of this rank alone. Unquantized by default. */
  readonly quantization?: QuantizationConfig;
  /** dtype of unquantized weights; f32 by default. */
  readonly dtype?: FloatDType;
  /** The reference kernels by default. */
  readonly kernels?: Kernels;
  /** Tensors of the checkpoint that no layer needs to take; none by default. */
  readonly ignores?: (name: string) => boolean;
}

/** Layers that are ready for use. */
export interface LoadedLayers<Layers> {
  /** What `build` returned. */
  readonly layers: Layers;
  /** Every linear layer and embedding, in the order in which they were made. */
  readonly linears: readonly LinearModule[];
}

/** Builds layers and loads them, as a rank does with those of a model. Throws what either throws. */
export function loadLayers<Layers>(
  options: LoadLayersOptions,
  build: (context: LayerContext) => Layers,
): LoadedLayers<Layers> {
  const { rank, worldSize, checkpoint, quantization = unquantized, dtype = "f32", ignores = () => false } = options;
  const context = new LayerContext({
    rank,
    worldSize,
    kernels: options.kernels ?? createReferenceKernels(),
    weights: new ArenaAllocator(`rank${rank}.weights`, 1024 * 1024),
    quantization,
    dtype,
  });
  const layers = build(context);
  loadWeights(context, quantization.checkpoint ?? checkpoint, { ignores });
  return { layers, linears: context.linears };
}

/** A checkpoint in memory. */
export function checkpointOf(tensors: Iterable<CheckpointTensor>): Checkpoint {
  return {
    tensors: new Map([...tensors].map((tensor) => [tensor.name, tensor])),
    bytesRead: 0,
    close: () => undefined,
  };
}

/** An element of a rank's shard that is not the element of the whole matrix it should be. */
export interface ShardDifference {
  readonly prefix: string;
  readonly rank: number;
  /** In the whole matrix. */
  readonly row: number;
  readonly column: number;
  readonly expected: number;
  readonly received: number;
}

/**
 * Compares what a linear layer multiplies with, dequantized, with its slice of the whole matrices; bit for bit, except that
 * zeros are equal whatever their sign. Returns the first difference, or null. `wholeOf` gives the values of a part,
 * `[outputSize, inputSize]`.
 */
export function compareShard(
  { layer, method }: LinearModule,
  wholeOf: (part: LinearPart, layer: LinearLayer) => Float32Array,
): ShardDifference | null {
  const shard = new Float32Array(layer.outputSizePerPartition * rangeSize(layer.inputs));
  let rows = 0;
  for (const { firstRow, weight } of method.executionWeights()) {
    const values = dequantize(weight);
    if (firstRow !== rows) return { ...at(layer, firstRow, 0), expected: rows, received: firstRow };
    shard.set(values, rows * rangeSize(layer.inputs));
    rows += values.length / rangeSize(layer.inputs);
  }
  if (rows !== layer.outputSizePerPartition) {
    return { ...at(layer, rows, 0), expected: layer.outputSizePerPartition, received: rows };
  }
  for (const part of layer.parts) {
    const difference = comparePart(layer, part, shard, wholeOf(part, layer));
    if (difference !== null) return difference;
  }
  return null;
}

function comparePart(
  layer: LinearLayer,
  part: LinearPart,
  shard: Float32Array,
  whole: Float32Array,
): ShardDifference | null {
  const { inputs, inputSize } = layer;
  const columns = rangeSize(inputs);
  for (let i = 0; i < rangeSize(part.rows); i++) {
    for (let j = 0; j < columns; j++) {
      const row = part.rows.start + i;
      const expected = whole[row * inputSize + inputs.start + j] ?? Number.NaN;
      const received = shard[(part.localOffset + i) * columns + j] ?? Number.NaN;
      if (expected !== received) {
        return { ...at(layer, row, inputs.start + j), prefix: part.prefix, expected, received };
      }
    }
  }
  return null;
}

function at(
  { prefix, rank }: LinearLayer,
  row: number,
  column: number,
): Omit<ShardDifference, "expected" | "received"> {
  return { prefix, rank, row, column };
}
