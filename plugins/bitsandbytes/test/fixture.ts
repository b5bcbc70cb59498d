/** Checkpoints for tests: the fixtures that transformers and bitsandbytes wrote, and tensors in memory. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import {
  type Checkpoint,
  type CheckpointTensor,
  type DType,
  dtypeBytes,
  elementCount,
  type QuantizationConfig,
  ShardloomError,
} from "shardloom/plugin";
import { checkpointOf, SafetensorsDirectory, SafetensorsFile } from "shardloom/testing";
import {
  bitsandbytes,
  blockCount,
  CODEBOOKS,
  DYNAMIC_MAP,
  encode,
  type FourBitType,
  findAbsmax,
  formatQuantState,
  NESTED_BLOCK,
  packedBytes,
  quantizeAbsmax,
  quantizeRows,
} from "../src/index.js";

/** Opens a model of test/fixtures/tiny (see the README there), `llama/nf4`; this module is compiled to dist/test. */
export function openFixture(name: string): SafetensorsDirectory {
  return SafetensorsDirectory.open(fileURLToPath(new URL(`../../../../test/fixtures/tiny/${name}`, import.meta.url)));
}

/** Weights that bitsandbytes dequantized: `llama/nf4`. */
export function openOracle(name: string): SafetensorsFile {
  const path = `../../../../test/fixtures/tiny/${name}.dequantized.safetensors`;
  return SafetensorsFile.open(fileURLToPath(new URL(path, import.meta.url)));
}

export function tensorOf(checkpoint: Checkpoint, name: string): CheckpointTensor {
  return checkpoint.tensors.get(name) ?? assert.fail(`no tensor ${name}`);
}

export function bytesOfTensor(tensor: CheckpointTensor): Uint8Array {
  const bytes = new Uint8Array(elementCount(tensor.shape) * dtypeBytes(tensor.dtype));
  tensor.read(bytes, 0);
  return bytes;
}

export function floatsOfTensor(tensor: CheckpointTensor): Float32Array {
  assert.equal(tensor.dtype, "f32");
  return new Float32Array(bytesOfTensor(tensor).buffer);
}

/** A tensor whose bytes are given. */
export function memoryTensor(
  name: string,
  dtype: DType,
  shape: readonly number[],
  content: ArrayLike<number> | ArrayBufferView,
): CheckpointTensor {
  const bytes = ArrayBuffer.isView(content)
    ? new Uint8Array(content.buffer, content.byteOffset, content.byteLength)
    : Uint8Array.from(content);
  return {
    name,
    dtype,
    shape,
    file: "memory.safetensors",
    read(destination, byteOffset) {
      assert.ok(byteOffset >= 0 && byteOffset + destination.length <= bytes.length, `${name}: read out of bounds`);
      destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
    },
  };
}

/** The same tensors with some added, replaced, or (null) taken away. */
export function withTensors(
  tensors: Iterable<CheckpointTensor>,
  changes: Readonly<Record<string, CheckpointTensor | null>>,
): CheckpointTensor[] {
  const kept = [...tensors].filter(({ name }) => !Object.hasOwn(changes, name));
  return [...kept, ...Object.values(changes).filter((tensor) => tensor !== null)];
}

export interface StoredOptions {
  readonly type?: FourBitType;
  readonly blockSize?: number;
  readonly doubleQuant?: boolean;
}

/** `X.weight` and its sidecars as bitsandbytes stores them, for values of a shape. */
export function storeFourBit(
  module: string,
  shape: readonly number[],
  values: Float32Array,
  { type = "nf4", blockSize = 64, doubleQuant = false }: StoredOptions = {},
): CheckpointTensor[] {
  const name = `${module}.weight`;
  const absmax = new Float32Array(blockCount(values.length, blockSize));
  const codes = new Uint8Array(packedBytes(values.length));
  findAbsmax(values, blockSize, absmax, { tensor: name, firstElement: 0 });
  encode(type, values, blockSize, absmax, codes);
  const nested = doubleQuant ? quantizeAbsmax(absmax) : null;
  const state = formatQuantState({
    type,
    blockSize,
    dtype: "bfloat16",
    shape,
    nested: nested === null ? null : { blockSize: NESTED_BLOCK, offset: nested.offset },
  });
  const tensors = [
    memoryTensor(name, "u8", [codes.length, 1], codes),
    memoryTensor(`${name}.quant_map`, "f32", [16], CODEBOOKS[type]),
    memoryTensor(`${name}.quant_state.bitsandbytes__${type}`, "u8", [state.length], state),
  ];
  if (nested === null) return [...tensors, memoryTensor(`${name}.absmax`, "f32", [absmax.length], absmax)];
  return [
    ...tensors,
    memoryTensor(`${name}.absmax`, "u8", [absmax.length], nested.codes),
    memoryTensor(`${name}.nested_absmax`, "f32", [nested.absmax.length], nested.absmax),
    memoryTensor(`${name}.nested_quant_map`, "f32", [256], DYNAMIC_MAP),
  ];
}

/** A stored 4-bit matrix of values that look like weights. */
export function storeRandom(
  module: string,
  rows: number,
  columns: number,
  options: StoredOptions = {},
): CheckpointTensor[] {
  return storeFourBit(module, [rows, columns], randomValues(rows * columns, rows + 7 * columns), options);
}

/** `X.weight` and `X.SCB` as bitsandbytes stores them. */
export function storeInt8(module: string, shape: readonly [number, number], values: Float32Array): CheckpointTensor[] {
  const codes = new Int8Array(values.length);
  const scales = new Float32Array(shape[0]);
  quantizeRows(Float32Array.from(values), shape[1], codes, scales, module, 0);
  return [
    memoryTensor(`${module}.weight`, "i8", shape, codes),
    memoryTensor(`${module}.SCB`, "f32", [shape[0]], scales),
    memoryTensor(`${module}.weight_format`, "u8", [], [0]),
  ];
}

/**
 * The values of a stored 4-bit weight by the definition of the format, one element at a time: an oracle that shares no code
 * with the plugin.
 */
export function dequantizeSlowly(tensors: readonly CheckpointTensor[], module: string): Float32Array {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const get = (key: string): CheckpointTensor | undefined => byName.get(`${module}.weight${key}`);
  const read = (key: string): Uint8Array => bytesOfTensor(get(key) ?? assert.fail(key));
  const floats = (key: string): Float32Array => new Float32Array(read(key).buffer);
  const type = get(".quant_state.bitsandbytes__nf4") === undefined ? "fp4" : "nf4";
  const state = JSON.parse(new TextDecoder().decode(read(`.quant_state.bitsandbytes__${type}`)));
  const codes = read("");
  const map = floats(".quant_map");
  const elements = elementCount(state.shape);
  const scaleOf = (block: number): number => {
    if (state.nested_blocksize === undefined) return floats(".absmax")[block] ?? Number.NaN;
    const code = read(".absmax")[block] ?? Number.NaN;
    const scale = floats(".nested_absmax")[Math.floor(block / state.nested_blocksize)] ?? Number.NaN;
    const product = Math.fround((floats(".nested_quant_map")[code] ?? Number.NaN) * scale);
    return Math.fround(product + Math.fround(state.nested_offset));
  };
  const scales = Array.from({ length: Math.ceil(elements / state.blocksize) }, (_, block) => scaleOf(block));
  return Float32Array.from({ length: elements }, (_, e) => {
    const byte = codes[e >> 1] ?? Number.NaN;
    const code = e % 2 === 0 ? byte >> 4 : byte & 15;
    return (map[code] ?? Number.NaN) * (scales[Math.floor(e / state.blocksize)] ?? Number.NaN);
  });
}

/** The config of a checkpoint that is quantized on disk. */
export function storedConfig(checkpoint: Checkpoint, options = {}, settings = {}): QuantizationConfig {
  return bitsandbytes.create({ origin: "checkpoint", settings, options, checkpoint });
}

/** The config of a checkpoint that is to be quantized while it is loaded. */
export function inFlightConfig(checkpoint: Checkpoint, options = {}): QuantizationConfig {
  return bitsandbytes.create({ origin: "user", settings: {}, options, checkpoint });
}

/** What layers see of some stored tensors, when none of them asks for codes. */
export function viewOf(tensors: Iterable<CheckpointTensor>): Checkpoint {
  return storedConfig(checkpointOf(tensors)).checkpoint ?? assert.fail("no view");
}

/** Numbers that look like weights; the same for the same seed. */
export function randomValues(count: number, seed: number): Float32Array {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () => (uniform() + uniform() + uniform() - 1.5) * 0.1);
}

/** Matches an error of ours by its code, and by the tensor it names if one is given. */
export function hasCode(code: string, tensor?: string): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof ShardloomError, String(error));
    assert.equal(error.code, code, error.message);
    if (tensor !== undefined) assert.equal(error.details.tensor, tensor, error.message);
    return true;
  };
}
