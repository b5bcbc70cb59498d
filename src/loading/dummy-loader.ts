/**
 * Seeded random weights for a model of which there is only a config: `loadFormat: "dummy"`. Element i of a tensor depends
 * on the seed, the tensor's name and i alone, so that every rank of every world size reads shards of one and the same
 * weight, and nothing is stored. All values have at most eight significant bits: every float dtype holds them exactly.
 */
import { statSync } from "node:fs";
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { dtypeBytes, type FloatDType, f32ToBf16, f32ToBits, f32ToF16 } from "../core/dtype.js";
import { CheckpointError, InternalError } from "../core/errors.js";
import { type JsonObject, readJsonObject } from "../core/json.js";
import { elementCount } from "../core/tensor.js";
import { describeDirectory } from "./default-loader.js";
import type { ExpectedTensor, ExpectedWeights, ModelDescription, ModelLoader } from "./model-loader.js";

/**
 * Loads a model's directory, or its config.json alone, without its weights. `quantization_config` is taken no notice of:
 * the weights made up here are not quantized (a user may have them quantized while they are loaded). Recognizes nothing
 * by itself: random weights are only ever asked for by name.
 */
export const dummyLoader: ModelLoader = {
  format: "dummy",
  matches: () => false,
  describe: async (path) => describe(path),
  open: async (path, expected) => {
    if (expected === undefined) throw new InternalError(`${path}: dummy weights were opened without a model`);
    return dummyCheckpoint(expected);
  },
};

function describe(path: string): ModelDescription {
  const isFile = statSync(path, { throwIfNoEntry: false })?.isFile() === true;
  if (isFile && !path.endsWith(".json")) {
    throw new CheckpointError(
      "NOT_A_DIRECTORY",
      `${path}: expected the model's directory or its config.json but received another file`,
      { file: path, expected: "a directory or a .json file", received: "another file" },
    );
  }
  const description = isFile
    ? { config: readJsonObject(path), generationConfig: null, tokenizer: null, chatTemplate: null }
    : describeDirectory(path);
  return { ...description, config: withoutQuantization(description.config) };
}

/** Whether a load format reads the weights of a model: those of a hub repository need not be downloaded where it does not. */
export function readsWeights(loadFormat: string | undefined): boolean {
  return loadFormat !== dummyLoader.format;
}

/** A config as dummy weights go with it. */
export function withoutQuantization(config: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(config).filter(([key]) => key !== "quantization_config"));
}

/** The weights that a model expects, made up. Reading costs no memory beyond what is read into. */
export function dummyCheckpoint(expected: ExpectedWeights): Checkpoint {
  const { seed } = expected;
  const tensors = expected.tensors().map((tensor) => [tensor.name, dummyTensor(tensor, seed)] as const);
  return { tensors: new Map(tensors), bytesRead: 0, close() {} };
}

function dummyTensor({ name, dtype, shape }: ExpectedTensor, seed: number): CheckpointTensor {
  const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
  const key = keyOf(name, seed);
  let table: Uint8Array | undefined;
  return {
    name,
    dtype,
    shape,
    file: `dummy weights of seed ${seed}`,
    read(destination, byteOffset) {
      if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset + destination.length > sizeBytes) {
        throw new RangeError(
          `${name}: expected a read within its ${sizeBytes} bytes but received offset ${byteOffset}, length ${destination.length}`,
        );
      }
      table ??= encodings(dtype, valuesOf(name, shape));
      fill(destination, byteOffset, dtypeBytes(dtype), table, key);
    },
  };
}

/** Writes bytes `[byteOffset, byteOffset + destination.length)` of a tensor whose element i is entry `code(i)` of a table. */
function fill(destination: Uint8Array, byteOffset: number, size: number, table: Uint8Array, key: number): void {
  let element = Math.floor(byteOffset / size);
  let byte = byteOffset % size;
  for (let at = 0; at < destination.length; element++, byte = 0) {
    // One hash serves four elements.
    const hash = mix((key + Math.imul(Math.floor(element / 4), 0x9e3779b1)) | 0);
    const code = (hash >>> (8 * (element % 4))) & 0xff;
    for (; byte < size && at < destination.length; byte++) destination[at++] = table[code * size + byte] ?? 0;
  }
}

/**
 * The 256 values an element may have. Matrices: symmetric about zero, with a standard deviation near 1 / sqrt(inputs), so
 * that activations keep their size from layer to layer. Norms: near 1. Biases: near 0.
 */
function valuesOf(name: string, shape: readonly number[]): Float32Array {
  const inputs = shape.at(-1) ?? 1;
  if (shape.length < 2 && !name.endsWith(".bias"))
    return Float32Array.from({ length: 256 }, (_, code) => 0.75 + (code & 63) / 128);
  // 255 / sqrt(3) is the standard deviation of the odd numbers from -255 to 255.
  const scale = shape.length < 2 ? 2 ** -12 : 2 ** -Math.round(Math.log2((255 / Math.sqrt(3)) * Math.sqrt(inputs)));
  return Float32Array.from({ length: 256 }, (_, code) => (2 * code - 255) * scale);
}

/** Values as little-endian elements, one after another. */
function encodings(dtype: FloatDType, values: Float32Array): Uint8Array {
  const size = dtypeBytes(dtype);
  const bytes = new Uint8Array(values.length * size);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => {
    if (dtype === "f32") view.setUint32(i * size, f32ToBits(value), true);
    else view.setUint16(i * size, dtype === "bf16" ? f32ToBf16(value) : f32ToF16(value), true);
  });
  return bytes;
}

/** 32 bits of a seed and a name (FNV-1a over UTF-16 code units, then mixed). */
function keyOf(name: string, seed: number): number {
  let key = 0x811c9dc5 ^ mix(seed | 0);
  for (let i = 0; i < name.length; i++) key = Math.imul(key ^ name.charCodeAt(i), 16777619);
  return mix(key);
}

/** The finalizer of MurmurHash3. */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
