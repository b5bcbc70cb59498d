/**
 * The shards of all ranks, put together, are the unsharded weights, bit for bit; and those are what the checkpoint holds.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { readSlice } from "../checkpoint/slice.js";
import { convertFloats, dtypeBytes, type FloatDType, isFloat } from "../core/dtype.js";
import { elementCount } from "../core/tensor.js";
import type { LoadedSlice } from "../layers/parameter.js";
import { boxSize, cellsOf } from "../parallel/coverage.js";
import { rangeSize } from "../parallel/partition.js";
import type { LinearPart } from "../quantization/contract.js";
import { type AssertionDetails, describePlace, SimulationAssertionError } from "./assertion-error.js";
import type { SimulatedLayer, SimulatedParameter, SimulatedRank } from "./simulated-rank.js";
import type { Simulation } from "./simulation.js";

/** What was compared. */
export interface Reassembled {
  /** Logical matrices of linear layers and embeddings, by the values that are multiplied with. */
  readonly matrices: number;
  /** Biases and norms. */
  readonly vectors: number;
  /** Slices of checkpoint tensors that unsharded parameters were compared with. */
  readonly checkpointSlices: number;
}

/**
 * Checks that
 * - the rows and columns that the ranks compute with cover every matrix;
 * - each rank multiplies with the same bits as one rank that holds everything, whatever the format of the weights;
 * - biases and norms are the same bits as well;
 * - norms, biases and the weights of layers without a quantization format hold, unsharded, what the checkpoint holds.
 *
 * Loads the model on one rank, once for each simulation. Throws SimulationAssertionError naming layer, rank, shard id, the
 * first index of the whole matrix that differs, expected, received.
 */
export async function expectReassembles(simulation: Simulation): Promise<Reassembled> {
  const [whole] = (await simulation.unsharded()).ranks;
  if (whole === undefined) throw new RangeError("a simulation has at least one rank");
  const { ranks } = simulation;
  const checkpoint = await simulation.openCheckpoint();
  try {
    return {
      matrices: whole.layers.reduce((count, layer) => count + checkMatrices(layer, ranks), 0),
      vectors: checkVectors(whole, ranks),
      checkpointSlices: checkAgainstCheckpoint(whole, checkpoint),
    };
  } finally {
    checkpoint.close();
  }
}

/** Compares the matrices of one layer on all ranks; returns how many they are. */
function checkMatrices(whole: SimulatedLayer, ranks: readonly SimulatedRank[]): number {
  const shards = ranks.map((rank) => rank.layer(whole.prefix));
  const expected = whole.values();
  for (const [i, part] of whole.plan.parts.entries()) checkCovered(part, i, shards);
  for (const shard of shards) {
    const received = shard.values();
    whole.plan.parts.forEach((part, i) => {
      const own = shard.plan.parts[i];
      if (own !== undefined)
        checkPart({ layer: whole, part, values: expected }, { layer: shard, part: own, values: received });
    });
  }
  return whole.plan.parts.length;
}

/** Every element of a part is computed with by some rank. */
function checkCovered(part: LinearPart, index: number, shards: readonly SimulatedLayer[]): void {
  const { plan } = shards[0] ?? {};
  if (plan === undefined) return;
  const boxes = shards.map(({ plan: own }) => [own.parts[index]?.rows ?? { start: 0, end: 0 }, own.inputs]);
  const gap = cellsOf([part.outputSize, plan.inputSize], boxes).find(({ owners }) => owners.length === 0);
  if (gap === undefined) return;
  throw failure(`${part.prefix}.weight`, {
    layer: plan.prefix,
    shardId: part.shardId,
    index: gap.box.map(({ start }) => start),
    expected: "a rank that owns it",
    received: "none",
  });
}

/** A part of a layer, among the layer's values. */
interface PlacedPart {
  readonly layer: SimulatedLayer;
  readonly part: LinearPart;
  readonly values: Float32Array;
}

function checkPart(whole: PlacedPart, shard: PlacedPart): void {
  const { inputs, rank, prefix, inputSize } = shard.layer.plan;
  const { rows, localOffset, shardId } = shard.part;
  const columns = rangeSize(inputs);
  for (let i = 0; i < rangeSize(rows); i++) {
    const from = (whole.part.localOffset + rows.start + i) * inputSize + inputs.start;
    const to = (localOffset + i) * columns;
    const expected = whole.values.subarray(from, from + columns);
    const received = shard.values.subarray(to, to + columns);
    const column = firstDifference(expected, received);
    if (column < 0) continue;
    throw failure(`${shard.part.prefix}.weight`, {
      layer: prefix,
      rank,
      shardId,
      index: [rows.start + i, inputs.start + column],
      expected: expected[column],
      received: received[column],
    });
  }
}

/** Compares norms and biases; returns how many they are. */
function checkVectors(whole: SimulatedRank, ranks: readonly SimulatedRank[]): number {
  const biased = new Map(whole.layers.flatMap((layer) => layer.parameters.map((each) => [each.name, layer] as const)));
  let count = 0;
  for (const parameter of whole.parameters) {
    const layer = biased.get(parameter.name);
    if (layer !== undefined && parameter.spec.name !== "bias") continue;
    for (const rank of ranks) {
      if (layer === undefined) checkWhole(parameter, rank.parameter(parameter.name));
      else checkBias(layer, parameter, rank);
    }
    count++;
  }
  return count;
}

function checkWhole(expected: SimulatedParameter, received: SimulatedParameter): void {
  const index = firstDifference(expected.values(), received.values());
  if (index < 0) return;
  throw failure(expected.name, {
    tensor: expected.name,
    rank: received.rank,
    index: [index],
    expected: expected.values()[index],
    received: received.values()[index],
  });
}

function checkBias(whole: SimulatedLayer, parameter: SimulatedParameter, rank: SimulatedRank): void {
  const { plan } = rank.layer(whole.prefix);
  const expected = parameter.values();
  const received = rank.parameter(parameter.name).values();
  plan.parts.forEach(({ prefix, rows, localOffset, shardId }, i) => {
    const first = (whole.plan.parts[i]?.localOffset ?? 0) + rows.start;
    const ofWhole = expected.subarray(first, first + rangeSize(rows));
    const ofShard = received.subarray(localOffset, localOffset + rangeSize(rows));
    const index = firstDifference(ofWhole, ofShard);
    if (index < 0) return;
    throw failure(`${prefix}.bias`, {
      layer: whole.prefix,
      rank: rank.rank,
      shardId,
      index: [rows.start + index],
      expected: ofWhole[index],
      received: ofShard[index],
    });
  });
}

/**
 * Compares what unsharded parameters hold with the checkpoint. Only those that the kernels use as they are loaded can be:
 * norms, biases, and the weights of layers without any format.
 */
function checkAgainstCheckpoint(whole: SimulatedRank, checkpoint: Checkpoint): number {
  const layerOf = new Map(whole.layers.flatMap((layer) => layer.parameters.map((each) => [each.name, layer] as const)));
  let count = 0;
  for (const parameter of whole.parameters) {
    const { dtype, spec } = parameter;
    const layer = layerOf.get(parameter.name);
    const translated = layer?.isQuantized === true && spec.name !== "bias";
    if (!isFloat(dtype) || translated || (spec.outputDim ?? 0) !== 0) continue;
    for (const slice of parameter.slices) {
      const tensor = checkpoint.tensors.get(slice.tensor);
      if (tensor === undefined || !isFloat(tensor.dtype) || `${tensor.shape}` !== `${slice.shape}`) continue;
      checkSlice(parameter, dtype, slice, tensor, tensor.dtype);
      count++;
    }
  }
  return count;
}

function checkSlice(
  parameter: SimulatedParameter,
  dtype: FloatDType,
  slice: LoadedSlice,
  tensor: CheckpointTensor,
  from: FloatDType,
): void {
  const elements = boxSize(slice.ranges);
  const loaded = new Uint8Array(elements * dtypeBytes(from));
  readSlice(tensor, slice.ranges, loaded);
  const stored = new Uint8Array(elements * dtypeBytes(dtype));
  convertFloats(loaded, from, stored, dtype, tensor.name);
  const expected = new Float32Array(elements);
  convertFloats(stored, dtype, new Uint8Array(expected.buffer), "f32", tensor.name);
  const unit = elementCount(parameter.shape.slice(1));
  const received = parameter.values().subarray(slice.offset * unit, (slice.offset + slice.size) * unit);
  const index = firstDifference(expected, received);
  if (index < 0) return;
  throw failure(`${parameter.name}, unsharded, from ${tensor.name} in ${tensor.file}`, {
    tensor: tensor.name,
    shardId: slice.shardId,
    index: [(slice.ranges[0]?.start ?? 0) + Math.floor(index / unit), index % unit].slice(0, tensor.shape.length),
    expected: expected[index],
    received: received[index],
  });
}

/** Index of the first element whose bits differ, or that only one of them has; -1 if there is none. */
function firstDifference(a: Float32Array, b: Float32Array): number {
  const [x, y] = [bitsOf(a), bitsOf(b)];
  const length = Math.max(x.length, y.length);
  for (let i = 0; i < length; i++) if (x[i] !== y[i]) return i;
  return -1;
}

function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

function failure(what: string, details: AssertionDetails): SimulationAssertionError {
  const { expected, received } = details;
  const message = `${what}: ${describePlace(details)}: expected ${String(expected)} but received ${String(received)}`;
  return new SimulationAssertionError(message, details);
}
