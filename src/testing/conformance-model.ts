/**
 * A tiny model in any format, without files: the author of a format says how one matrix is stored, and has a model whose
 * layers are of every kind and can be shared by up to eight ranks.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { convertFloats, type DType, dtypeBytes, isFloat } from "../core/dtype.js";
import { CheckpointError, InternalError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { describeShape, elementCount } from "../core/tensor.js";
import { dummyCheckpoint } from "../loading/dummy-loader.js";
import { selectFamily } from "../models/registry.js";
import type { LinearLayer } from "../quantization/contract.js";
import { expectedWeights, layersWithoutBytes } from "../rank/expected-weights.js";
import type { ExpectedValues, MemoryModel } from "./conformance-fixture.js";

/** A matrix to store. */
export interface MatrixToStore {
  /** Name on disk without `.weight`: `model.layers.0.self_attn.q_proj`. */
  readonly module: string;
  /** "embedding" for the table that tokens are looked up in; "head" for the one that makes logits. */
  readonly role: "linear" | "embedding" | "head";
  /** `[outputs, inputs]` */
  readonly shape: readonly [number, number];
  /** Made up, row-major: about as large as weights are. */
  readonly values: Float32Array;
}

/** How a format stores a matrix. */
export interface StoredMatrix {
  readonly tensors: readonly CheckpointTensor[];
  /** What the stored matrix stands for, by an implementation other than the plugin's; row-major `[outputs, inputs]`. */
  readonly values?: Float32Array;
}

export interface ModelInFormatOptions {
  /** `quantization_config` of config.json; none for a model that is quantized while it is loaded. */
  readonly settings?: JsonObject | undefined;
  /** Stores a matrix, or returns null to leave it plain: f32, or whatever the config says. */
  store?(matrix: MatrixToStore): StoredMatrix | null;
  /** Stores queries, keys and values as one matrix, and gate and up (as Phi 3 does). Default false. */
  readonly fused?: boolean | undefined;
  /** Takes the place of what config.json says: `{ hidden_size: 128 }`. */
  readonly config?: JsonObject | undefined;
  /** Seed of the values. Default 0. */
  readonly seed?: number | undefined;
}

/** Divides by neither 5, 7 nor 64: partitions are uneven, and cut blocks. Every dimension can be set otherwise. */
const CONFIG: JsonObject = {
  hidden_act: "silu",
  hidden_size: 96,
  intermediate_size: 160,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  head_dim: 8,
  num_hidden_layers: 1,
  vocab_size: 72,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
  dtype: "float32",
};

/** A model for `PluginFixture.model`, and what its matrices are expected to hold, where `store` says so. */
export function modelInFormat(options: ModelInFormatOptions): {
  readonly model: MemoryModel;
  readonly expected?: ExpectedValues;
} {
  const { settings, store = () => null, fused = false, seed = 0 } = options;
  const architecture = fused ? "Phi3ForCausalLM" : "LlamaForCausalLM";
  const config: JsonObject = {
    architectures: [architecture],
    ...CONFIG,
    ...options.config,
    ...(settings === undefined ? {} : { quantization_config: settings }),
  };
  const family = selectFamily(config);
  const plain = dummyCheckpoint(expectedWeights(family, config, seed)).tensors;
  const tensors: CheckpointTensor[] = [];
  const values = new Map<string, Float32Array>();
  const taken = new Set<string>();
  for (const { layer } of layersWithoutBytes(family, config).linears) {
    for (const matrix of matricesOf(layer, fused, plain)) {
      const stored = store(matrix);
      const names = partNames(layer, matrix.module);
      if (stored === null && names.length === 1) continue;
      for (const name of names) taken.add(name);
      tensors.push(...(stored?.tensors ?? [plainMatrix(matrix, plain.get(names[0] ?? ""))]));
      if (stored?.values !== undefined) values.set(`${matrix.module}.weight`, stored.values);
    }
  }
  for (const tensor of plain.values()) if (!taken.has(tensor.name)) tensors.push(tensor);
  const model: MemoryModel = { config, tensors: () => tensors };
  return values.size === 0 ? { model } : { model, expected: (weight) => values.get(weight) };
}

function matricesOf(
  { prefix, kind, parts, inputSize }: LinearLayer,
  fused: boolean,
  plain: ReadonlyMap<string, CheckpointTensor>,
): readonly MatrixToStore[] {
  const role = kind === "embedding" ? "embedding" : kind === "column" ? "head" : "linear";
  const matrices = parts.map((part): MatrixToStore => {
    const values = floatsOf(plain.get(`${part.prefix}.weight`), part.prefix);
    return { module: part.prefix, role, shape: [part.outputSize, inputSize], values };
  });
  if (!fused || parts.length === 1) return matrices;
  const rows = parts.reduce((sum, { outputSize }) => sum + outputSize, 0);
  const values = new Float32Array(rows * inputSize);
  let at = 0;
  for (const matrix of matrices) {
    values.set(matrix.values, at);
    at += matrix.values.length;
  }
  return [{ module: prefix, role, shape: [rows, inputSize], values }];
}

/** Names of the plain tensors whose place a stored matrix takes. */
function partNames({ prefix, parts }: LinearLayer, module: string): readonly string[] {
  return module === prefix ? parts.map((part) => `${part.prefix}.weight`) : [`${module}.weight`];
}

/** Several plain tensors as one. */
function plainMatrix({ module, shape, values }: MatrixToStore, like: CheckpointTensor | undefined): CheckpointTensor {
  const dtype = like?.dtype ?? "f32";
  if (!isFloat(dtype)) throw new InternalError(`${module}: expected dummy weights to be floats but they are ${dtype}`);
  const bytes = new Uint8Array(values.length * dtypeBytes(dtype));
  convertFloats(new Uint8Array(values.buffer), "f32", bytes, dtype, module);
  return memoryTensor(`${module}.weight`, dtype, shape, bytes);
}

function floatsOf(tensor: CheckpointTensor | undefined, module: string): Float32Array {
  if (tensor === undefined || !isFloat(tensor.dtype)) throw new InternalError(`no dummy weight for ${module}`);
  const bytes = new Uint8Array(elementCount(tensor.shape) * dtypeBytes(tensor.dtype));
  tensor.read(bytes, 0);
  const values = new Float32Array(elementCount(tensor.shape));
  convertFloats(bytes, tensor.dtype, new Uint8Array(values.buffer), "f32", tensor.name);
  return values;
}

/**
 * A checkpoint tensor in memory. Throws CheckpointError `SHAPE_MISMATCH` for contents that are not as long as dtype and
 * shape say.
 */
export function memoryTensor(
  name: string,
  dtype: DType,
  shape: readonly number[],
  content: ArrayBufferView,
): CheckpointTensor {
  const bytes = new Uint8Array(content.buffer, content.byteOffset, content.byteLength);
  const file = "memory";
  const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
  if (bytes.length !== sizeBytes) {
    throw new CheckpointError(
      "SHAPE_MISMATCH",
      `${name}: expected ${sizeBytes} bytes for ${describeShape(dtype, shape)} but received ${bytes.length}`,
      { tensor: name, file, expected: sizeBytes, received: bytes.length },
    );
  }
  return {
    name,
    dtype,
    shape,
    file,
    read(destination, byteOffset) {
      if (byteOffset < 0 || byteOffset + destination.length > bytes.length) {
        throw new RangeError(
          `${name}: expected a read within ${bytes.length} bytes but received one from ${byteOffset} on`,
        );
      }
      destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
    },
  };
}
