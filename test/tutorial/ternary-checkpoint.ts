/** Ternary copies of models: what a converter for the format of the tutorial writes, and what it means. */
import assert from "node:assert/strict";
import { convertFloats, isFloat } from "../../src/core/dtype.js";
import { configOf, type StoredTensor, tensorsOf, writeModel } from "../loading/rewritten-model.js";

export interface TernaryMatrix {
  /** Two bits a code, 0, 1 and 2 for -1, 0 and 1; the first of four lowest. */
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  /** What they mean: f32 `[rows, columns]`. */
  readonly values: Float32Array;
}

/** Rounds a matrix to -1, 0 or 1 times the mean magnitude of each block of rows. */
export function toTernary(weights: Float32Array, columns: number, blockRows: number): TernaryMatrix {
  const scales: number[] = [];
  const codes = new Uint8Array(weights.length / 4);
  const values = new Float32Array(weights.length);
  const blockElements = blockRows * columns;
  for (let first = 0; first < weights.length; first += blockElements) {
    const block = weights.subarray(first, first + blockElements);
    const scale = Math.fround(block.reduce((sum, weight) => sum + Math.abs(weight), 0) / block.length);
    scales.push(scale);
    block.forEach((weight, i) => {
      const trit = scale === 0 ? 0 : Math.max(-1, Math.min(1, Math.round(weight / scale)));
      const element = first + i;
      codes[element >> 2] = (codes[element >> 2] ?? 0) | ((trit + 1) << (2 * (element % 4)));
      values[element] = trit * scale;
    });
  }
  return { codes, scales: Float32Array.from(scales), values };
}

/** The tensors `X.weight` and `X.weight_scale` of a matrix, or of several fused in one: each has blocks of its own. */
export function ternaryTensors(
  module: string,
  matrices: readonly TernaryMatrix[],
  columns: number,
): [string, StoredTensor][] {
  const codes = Buffer.concat(matrices.map((matrix) => matrix.codes));
  const scales = Buffer.concat(matrices.map(({ scales: { buffer } }) => new Uint8Array(buffer)));
  return [
    [`${module}.weight`, { dtype: "u8", shape: [(4 * codes.length) / columns, columns / 4], bytes: codes }],
    [`${module}.weight_scale`, { dtype: "f32", shape: [scales.length / 4, 1], bytes: scales }],
  ];
}

export interface TernaryModel {
  readonly path: string;
  /** The same weights as f32, under the names of the ternary ones. */
  readonly values: ReadonlyMap<string, Float32Array>;
}

/**
 * Writes a copy of a model whose projections are ternary; with `ends`, its embedding and head are as well. `fused` tells
 * the rows of the matrices that one tensor holds.
 */
export function writeTernaryModel(
  source: string,
  path: string,
  options: {
    readonly blockRows: number;
    readonly ends?: boolean;
    readonly fused?: Readonly<Record<string, readonly number[]>>;
  },
): TernaryModel {
  const { blockRows, ends = false, fused = {} } = options;
  const values = new Map<string, Float32Array>();
  const tensors = [...tensorsOf(source)].flatMap(([name, tensor]): [string, StoredTensor][] => {
    const module = name.slice(0, -".weight".length);
    const isEnd = module === "model.embed_tokens" || module === "lm_head";
    if (!module.endsWith("_proj") && !(ends && isEnd)) return [[name, tensor]];
    const [rows = 0, columns = 0] = tensor.shape;
    const weights = floatsOf(tensor);
    let first = 0;
    const matrices = (fused[module.slice(module.lastIndexOf(".") + 1)] ?? [rows]).map((count) => {
      const part = weights.subarray(first * columns, (first + count) * columns);
      first += count;
      return toTernary(part, columns, blockRows);
    });
    assert.equal(first, rows, name);
    values.set(name, Float32Array.from(matrices.flatMap((matrix) => [...matrix.values])));
    return ternaryTensors(module, matrices, columns);
  });
  const quantization_config = { quant_method: "ternary", block_rows: blockRows };
  writeModel(path, { ...configOf(source), quantization_config }, new Map(tensors));
  return { path, values };
}

/** Writes the same model unquantized, in f32. */
export function writeDequantizedModel(source: string, path: string, { values }: TernaryModel): string {
  const tensors = [...tensorsOf(source)].map(([name, tensor]): [string, StoredTensor] => {
    const floats = values.get(name) ?? floatsOf(tensor);
    return [name, { dtype: "f32", shape: tensor.shape, bytes: new Uint8Array(floats.buffer) }];
  });
  return writeModel(path, { ...configOf(source), torch_dtype: "float32", dtype: "float32" }, new Map(tensors));
}

function floatsOf({ dtype, bytes }: StoredTensor): Float32Array {
  assert.ok(isFloat(dtype));
  const floats = new Float32Array(bytes.length / (dtype === "f32" ? 4 : 2));
  convertFloats(bytes, dtype, new Uint8Array(floats.buffer), "f32", "a fixture");
  return floats;
}
