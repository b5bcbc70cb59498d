/** Layers over fixtures/formats.gguf, and the comparison of what they hold with what the `gguf` package reads. */
import assert from "node:assert/strict";
import {
  type Checkpoint,
  dequantize,
  type ExecutionWeight,
  type LinearLayer,
  type LinearPart,
  type QuantizationConfig,
  type Range,
  rangeSize,
} from "shardloom/plugin";
import {
  ColumnParallelLinear,
  createReferenceKernels,
  type LayerContext,
  type LinearModule,
  loadLayers,
  RowParallelLinear,
  VocabParallelEmbedding,
} from "shardloom/testing";
import { ggufQuantization } from "../src/index.js";
import { type Expected, readExpected, valuesOf } from "./expected.js";

/** The tensors of the fixture. */
export const expected: readonly Expected[] = readExpected();

/** The matrices in block formats, by the ggml type: the type is not in the expectations, so it is told here. */
export const matrices = {
  Q8_0: "model.embed_tokens",
  Q4_K: "model.layers.0.self_attn.q_proj",
  Q5_K: "model.layers.0.self_attn.k_proj",
  Q6_K: "model.layers.0.self_attn.v_proj",
  Q4_0: "model.layers.0.self_attn.o_proj",
  Q4_1: "model.layers.0.mlp.gate_proj",
  Q5_0: "model.layers.0.mlp.up_proj",
  Q5_1: "model.layers.0.mlp.down_proj",
} as const;

export type BlockType = keyof typeof matrices;

export const blockTypes: readonly BlockType[] = ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"];

/** Rows and columns of a module's weight, and its values as the package has them. */
export function matrixOf(prefix: string): { rows: number; columns: number; values: Float32Array } {
  const found = expected.find(({ name }) => name === `${prefix}.weight`);
  assert.ok(found, prefix);
  const [rows = 0, columns = 0] = found.shape;
  return { rows, columns, values: valuesOf(found) };
}

/** What all layers here are bound to. */
export const kernels = createReferenceKernels();

/** The quantization config of one rank. */
export function quantizationOf(checkpoint: Checkpoint): QuantizationConfig {
  return ggufQuantization.create({
    origin: "checkpoint",
    settings: { quant_method: "gguf" },
    options: {},
    checkpoint,
  });
}

/** A place in a tensor-parallel group. */
export interface Place {
  readonly rank: number;
  readonly worldSize: number;
}

/** Builds and loads layers of one rank; the tensors of the fixture that they do not take are left alone. */
export function load<Layers>(checkpoint: Checkpoint, place: Place, build: (context: LayerContext) => Layers) {
  const quantization = quantizationOf(checkpoint);
  return loadLayers({ ...place, checkpoint, quantization, kernels, dtype: "f16", ignores: () => true }, build);
}

/** How a matrix is made a layer: its rows are split over the ranks, its columns, or its rows as those of an embedding. */
export type Kind = "column" | "row" | "embedding";

export const kinds: readonly Kind[] = ["column", "row", "embedding"];

/** One rank of a layer made of one matrix. */
export function loadMatrix(
  checkpoint: Checkpoint,
  prefix: string,
  kind: Kind,
  split: readonly Range[],
  rank: number,
): LinearModule {
  const { rows, columns } = matrixOf(prefix);
  const place = { rank, worldSize: split.length };
  return load(checkpoint, place, (context): LinearModule => {
    if (kind === "embedding") {
      return new VocabParallelEmbedding(context, {
        prefix,
        vocabularySize: rows,
        hiddenSize: columns,
        vocabulary: split,
      });
    }
    const options = { prefix, inputSize: columns, outputSize: rows, split };
    return kind === "row" ? new RowParallelLinear(context, options) : new ColumnParallelLinear(context, options);
  }).layers;
}

/** What a layer multiplies with, of one weight after the other. */
export function valuesHeld(weights: readonly ExecutionWeight[]): Float32Array<ArrayBuffer> {
  return concatenated(weights.map(({ weight }) => dequantize(weight)));
}

function concatenated(values: readonly Float32Array[]): Float32Array<ArrayBuffer> {
  const all = new Float32Array(values.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const each of values) {
    all.set(each, at);
    at += each.length;
  }
  return all;
}

/**
 * Fails unless a layer's weights are this rank's slices of whole matrices, to the last bit, zeros included. `wholeOf` gives
 * the values of a module's weight: those of the fixture by default.
 */
export function assertShard(
  { layer, method }: LinearModule,
  what: string,
  wholeOf = (prefix: string): Float32Array => matrixOf(prefix).values,
): void {
  const wanted = bitsOf(concatenated(layer.parts.map((part) => sliceOf(layer, part, wholeOf(part.prefix)))));
  const held = bitsOf(valuesHeld(method.executionWeights()));
  assert.equal(held.length, wanted.length, what);
  const difference = held.findIndex((bits, i) => bits !== wanted[i]);
  assert.equal(difference, -1, `${what}: element ${difference}`);
  let row = 0;
  for (const { firstRow, weight } of method.executionWeights()) {
    assert.equal(firstRow, row, `${what}: first rows`);
    assert.ok(weight.format !== "prepared");
    row += weight.format === "dense" ? weight.matrix.rows : weight.codes.rows;
  }
}

const bitsOf = ({ buffer }: Float32Array<ArrayBuffer>): Uint32Array => new Uint32Array(buffer);

function sliceOf({ inputs, inputSize }: LinearLayer, { rows }: LinearPart, values: Float32Array): Float32Array {
  const slice = new Float32Array(rangeSize(rows) * rangeSize(inputs));
  for (let row = rows.start; row < rows.end; row++) {
    const line = values.subarray(row * inputSize + inputs.start, row * inputSize + inputs.end);
    slice.set(line, (row - rows.start) * rangeSize(inputs));
  }
  return slice;
}

/** Ranges between neighbouring edges. */
export function between(...edges: readonly number[]): Range[] {
  return edges.slice(1).map((end, i) => ({ start: edges[i] ?? 0, end }));
}
