/** Layers of every kind, of given sizes and cuts, on all ranks. */
import assert from "node:assert/strict";
import type { Checkpoint, CheckpointTensor, LinearPart, QuantizationConfig } from "shardloom/plugin";
import {
  ColumnParallelLinear,
  checkpointOf,
  compareShard,
  type LayerContext,
  type LinearModule,
  loadLayers,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  ReplicatedLinear,
  RowParallelLinear,
  scaleSplit,
  splitHeads,
  VocabParallelEmbedding,
} from "shardloom/testing";
import { dequantizeSlowly, storedConfig } from "./fixture.js";

/** Contiguous ranges, one a rank, that cover a size. */
export type Split = readonly { readonly start: number; readonly end: number }[];

/** A split of `total` where the given ranks end. */
export function splitAt(total: number, ...ends: readonly number[]): Split {
  const bounds = [0, ...ends, total];
  return bounds.slice(1).map((end, i) => ({ start: bounds[i] ?? 0, end }));
}

export type Build = (context: LayerContext) => unknown;

export function column(prefix: string, outputSize: number, inputSize: number, split: Split): Build {
  return (context) => new ColumnParallelLinear(context, { prefix, outputSize, inputSize, split });
}

export function row(prefix: string, outputSize: number, inputSize: number, split: Split, bias = false): Build {
  return (context) => new RowParallelLinear(context, { prefix, outputSize, inputSize, split, bias });
}

export function replicated(prefix: string, outputSize: number, inputSize: number): Build {
  return (context) => new ReplicatedLinear(context, { prefix, outputSize, inputSize });
}

export function embedding(prefix: string, vocabularySize: number, hiddenSize: number, vocabulary: Split): Build {
  return (context) => new VocabParallelEmbedding(context, { prefix, vocabularySize, hiddenSize, vocabulary });
}

export function merged(
  prefix: string,
  inputSize: number,
  parts: readonly { readonly name: string; readonly outputSize: number; readonly split: Split }[],
): Build {
  return (context) =>
    new MergedColumnParallelLinear(context, {
      prefix,
      inputSize,
      parts: parts.map(({ name, outputSize, split }) => ({ prefix: name, outputSize, split })),
    });
}

export interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly valueHeadSize?: number;
  /** How a tensor holds all three. */
  readonly fusedLayout?: "concatenated" | "interleaved";
}

/** `prefix.qkv_proj`, made of `prefix.q_proj` and so on. */
export function qkv(prefix: string, inputSize: number, { heads, kvHeads, headSize, ...options }: Heads): Build {
  return (context) =>
    new QKVParallelLinear(context, {
      prefix: `${prefix}.qkv_proj`,
      inputSize,
      headSize,
      ...options,
      totalHeads: heads,
      totalKvHeads: kvHeads,
      heads: splitHeads(heads, kvHeads, context.worldSize),
      names: { q: `${prefix}.q_proj`, k: `${prefix}.k_proj`, v: `${prefix}.v_proj` },
    });
}

/** Equal ranges. */
export function even(total: number, worldSize: number): Split {
  return splitAt(total, ...Array.from({ length: worldSize - 1 }, (_, i) => ((i + 1) * total) / worldSize));
}

export { scaleSplit };

/** Loads layers on every rank, each with a config of its own, as ranks have. */
export function loadRanks(
  worldSize: number,
  checkpoint: Checkpoint,
  config: (checkpoint: Checkpoint) => QuantizationConfig,
  ...builds: readonly Build[]
): readonly (readonly LinearModule[])[] {
  return Array.from({ length: worldSize }, (_, rank) => {
    const options = { rank, worldSize, checkpoint, quantization: config(checkpoint), ignores: () => true };
    return loadLayers(options, (context) => builds.map((build) => build(context))).linears;
  });
}

/** Holds every shard on every rank to its slice of the whole values, to the bit. */
export function expectShards(
  ranks: readonly (readonly LinearModule[])[],
  wholeOf: (part: LinearPart, module: LinearModule) => Float32Array,
): void {
  for (const linears of ranks) {
    assert.ok(linears.length > 0);
    for (const linear of linears)
      assert.equal(
        compareShard(linear, (part) => wholeOf(part, linear)),
        null,
      );
  }
}

/** Execution formats of a layer's weights, in order: `code4/32`, `int8`, `dense f32`. */
export function formatsOf({ method }: LinearModule): readonly string[] {
  return method.executionWeights().map(({ weight }) => {
    if (weight.format === "code4") return `code4/${weight.blockSize}`;
    return weight.format === "dense" ? `dense ${weight.matrix.tensor.dtype}` : weight.format;
  });
}

/** Loads one layer on all ranks from stored tensors and holds it to the slow oracle. Returns formats by rank. */
export function expectStored(
  worldSize: number,
  tensors: readonly CheckpointTensor[],
  ...builds: Build[]
): readonly (readonly string[])[] {
  const ranks = loadRanks(worldSize, checkpointOf(tensors), storedConfig, ...builds);
  const wholes = new Map<string, Float32Array>();
  expectShards(ranks, ({ prefix }) => {
    const whole = wholes.get(prefix) ?? dequantizeSlowly(tensors, prefix);
    wholes.set(prefix, whole);
    return whole;
  });
  return ranks.map((linears) => linears.flatMap(formatsOf));
}
