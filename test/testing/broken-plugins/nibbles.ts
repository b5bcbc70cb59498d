/**
 * A small, honest quantization format for tests of the conformance kit, made of pieces that broken plugins replace one at
 * a time. 4-bit codes, two to a byte, the even element in the high half, row after row without any gap (`X.weight`, u8
 * `[outputs * inputs / 2]`); one scale for every 16 inputs of a row, the last of which may have fewer (`X.scales`, f32
 * `[outputs, ceil(inputs / 16)]`). An element is `(code - 8) * scale`. Weights in floats are quantized while they are loaded.
 */
import {
  bytesOf,
  type Checkpoint,
  CheckpointError,
  type CheckpointTensor,
  describeValue,
  dtypeBytes,
  type ExecutionWeight,
  elementCount,
  f32Of,
  type JsonObject,
  type Kernels,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type LoadedWeights,
  type ModelLoader,
  type Operand,
  type Plugin,
  type QuantizationConfig,
  type QuantizationRequest,
  rangeSize,
  type ShardIndexer,
  type WeightCreation,
} from "../../../src/plugin.js";

export const BLOCK = 16;
export const METHOD = "nibbles";

/** Scales that a row has. */
export const blocksOf = (inputs: number): number => Math.ceil(inputs / BLOCK);

/** How the weight of a layer, or of a part of it, is stored on disk. */
export interface Stored {
  readonly module: string;
  readonly outputs: number;
  readonly inputs: number;
  /** Null for floats that are to be quantized. */
  readonly codes: CheckpointTensor | null;
  readonly scales: CheckpointTensor | null;
  readonly floats: CheckpointTensor | null;
}

/** What a layer is shown: tensors that its weight loader can slice. */
export interface Shown {
  readonly codes: CheckpointTensor;
  readonly scales: CheckpointTensor;
}

export class NibblesMethod implements LinearMethod {
  protected readonly config: NibblesConfig;
  protected weight: LinearWeight | undefined;

  constructor(config: NibblesConfig) {
    this.config = config;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const rows = layer.outputSizePerPartition;
    const { start, end } = layer.inputs;
    const blocks = blocksOf(end) - Math.floor(start / BLOCK);
    if (isIndexed(layer)) {
      creation.addParameter({
        name: "weight",
        dtype: "u8",
        shape: [(rows * layer.inputSize) / 2],
        outputDim: 0,
        inputDim: null,
        shardIndexer: this.indexer(layer),
      });
    } else {
      creation.addParameter({
        name: "weight",
        dtype: "u8",
        shape: [rows, (end - start) / 2],
        outputDim: 0,
        inputDim: 1,
        packed: { dim: 1, factor: 2 },
      });
    }
    creation.addParameter({
      name: "scales",
      dtype: "f32",
      shape: [rows, blocks],
      outputDim: 0,
      inputDim: 1,
      blockScale: { outputs: 1, inputs: BLOCK },
    });
  }

  protected indexer(layer: LinearLayer): ShardIndexer {
    return ({ extent, shardId, rank }) => {
      return {
        offset: this.bytesOf(extent.offset, layer, `shard ${shardId} on rank ${rank}`),
        size: this.bytesOf(extent.size, layer, `shard ${shardId} on rank ${rank}`),
      };
    };
  }

  /** Bytes of so many rows. */
  protected bytesOf(rows: number, { prefix, inputSize }: LinearLayer, what: string): number {
    const bytes = (rows * inputSize) / 2;
    if (Number.isInteger(bytes)) return bytes;
    throw new CheckpointError(
      "INEXACT_PACKING",
      `${prefix}: expected whole bytes but ${what} is cut after ${rows} rows of ${inputSize} codes`,
      { layer: prefix, expected: "whole bytes", received: rows * inputSize },
    );
  }

  processWeightsAfterLoading(weights: LoadedWeights, layer: LinearLayer): void {
    const rows = layer.outputSizePerPartition;
    const inputs = rangeSize(layer.inputs);
    const values = weights.allocate("values", "f32", [rows, inputs]);
    this.decode(f32Of(values), bytesOf(weights.tensor("weight")), f32Of(weights.tensor("scales")), layer);
    this.weight = { format: "dense", matrix: weights.kernels.bind(values) };
  }

  /** Writes the values of this rank's rows and inputs. */
  protected decode(values: Float32Array, codes: Uint8Array, scales: Float32Array, layer: LinearLayer): void {
    const inputs = rangeSize(layer.inputs);
    const firstBlock = Math.floor(layer.inputs.start / BLOCK);
    const blocks = blocksOf(layer.inputs.end) - firstBlock;
    for (let i = 0; i < values.length; i++) {
      const row = Math.floor(i / inputs);
      const block = Math.floor((layer.inputs.start + (i % inputs)) / BLOCK) - firstBlock;
      values[i] = (this.codeOf(codes, i) - 8) * (scales[row * blocks + block] ?? Number.NaN);
    }
  }

  /** The code of element `i`. */
  protected codeOf(codes: Uint8Array, i: number): number {
    const byte = codes[i >> 1] ?? 0;
    return (i & 1) === 0 ? byte >> 4 : byte & 15;
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.weight !== undefined) kernels.linear(out, x, this.weight, bias, rows);
  }

  embed(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    if (this.weight !== undefined) kernels.embedding(out, ids, this.weight, rows, firstId);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.weight === undefined ? [] : [{ firstRow: 0, weight: this.weight }];
  }
}

/** Layers whose codes keep their shape on disk, so that only an indexer knows where rows are. */
export function isIndexed({ kind }: LinearLayer): boolean {
  return kind === "merged" || kind === "qkv";
}

export class NibblesConfig implements QuantizationConfig {
  readonly name = METHOD;
  protected readonly request: Omit<QuantizationRequest, "checkpoint">;
  /** Null once the layers have been made. */
  protected source: Checkpoint | null;
  /** What layers take, by the module on disk. */
  readonly #taken = new Map<string, { readonly stored: Stored; readonly layer: LinearLayer }>();

  constructor({ checkpoint, ...request }: QuantizationRequest) {
    this.source = checkpoint;
    this.request = request;
    this.readSettings(request.settings);
  }

  /** Throws CheckpointError `INVALID_CONFIG`. */
  protected readSettings({ block_size: size = BLOCK }: JsonObject): void {
    if (size === BLOCK) return;
    const received = describeValue(size);
    throw new CheckpointError("INVALID_CONFIG", `expected block_size to be ${BLOCK} but received ${received}`, {
      expected: BLOCK,
      received,
    });
  }

  linearMethod(layer: LinearLayer): LinearMethod | null {
    const { source } = this;
    if (source === null) throw new CheckpointError("LATE_LAYER", `${layer.prefix} was made after loading had begun`);
    const own = layer.parts.map((part) => this.find(source, part.prefix, part.outputSize, layer));
    const total = layer.parts.reduce((sum, { outputSize }) => sum + outputSize, 0);
    const fused = own.every((stored) => stored === null) ? this.find(source, layer.prefix, total, layer) : null;
    const found = (fused === null ? own : [fused]).filter((stored) => stored !== null);
    if (found.length === 0) return null;
    for (const stored of found) this.#taken.set(stored.module, { stored, layer });
    return this.createMethod(layer);
  }

  protected createMethod(_layer: LinearLayer): LinearMethod {
    return new NibblesMethod(this);
  }

  /** What is stored of a module; null where it is not this format's. */
  protected find(source: Checkpoint, module: string, outputs: number, layer: LinearLayer): Stored | null {
    const { inputSize: inputs, kind } = layer;
    const codes = source.tensors.get(`${module}.weight`) ?? null;
    const scales = source.tensors.get(`${module}.scales`) ?? null;
    if (codes === null && scales === null) return null;
    if (this.request.origin === "user") {
      // What is not quantized yet: floats, and no embeddings.
      if (codes === null || kind === "embedding") return null;
      expectTensor(codes.name, codes, "f32", [outputs, inputs]);
      return { module, outputs, inputs, codes: null, scales: null, floats: codes };
    }
    if (scales === null && codes !== null && codes.dtype !== "u8") return null;
    const stored = { module, outputs, inputs, codes, scales, floats: null };
    this.check(stored);
    return stored;
  }

  /** Throws CheckpointError for tensors that do not belong together. */
  protected check({ module, outputs, inputs, codes, scales }: Stored): void {
    expectTensor(`${module}.weight`, codes, "u8", [(outputs * inputs) / 2]);
    expectTensor(`${module}.scales`, scales, "f32", [outputs, blocksOf(inputs)]);
  }

  get checkpoint(): Checkpoint {
    const { source } = this;
    if (source === null) throw new CheckpointError("LATE_CHECKPOINT", "the checkpoint was asked for twice");
    this.source = null;
    const tensors = new Map(source.tensors);
    for (const { stored, layer } of this.#taken.values()) {
      const { codes, scales } = this.show(stored, layer);
      tensors.set(codes.name, codes).set(scales.name, scales);
    }
    this.#taken.clear();
    return {
      tensors: this.listed(tensors, source),
      get bytesRead() {
        return source.bytesRead;
      },
      close: () => source.close(),
    };
  }

  /** The tensors that layers are shown. */
  protected listed(
    tensors: ReadonlyMap<string, CheckpointTensor>,
    _source: Checkpoint,
  ): ReadonlyMap<string, CheckpointTensor> {
    return tensors;
  }

  protected show(stored: Stored, layer: LinearLayer): Shown {
    const { module, outputs, inputs, floats } = stored;
    const shape = isIndexed(layer) ? [(outputs * inputs) / 2] : [outputs, inputs / 2];
    if (floats !== null) {
      const { codes, scales } = quantize(floatsOf(floats), outputs, inputs);
      return {
        codes: virtualTensor(`${module}.weight`, "u8", shape, floats.file, readerOf(codes)),
        scales: virtualTensor(`${module}.scales`, "f32", [outputs, blocksOf(inputs)], floats.file, readerOf(scales)),
      };
    }
    const codes = stored.codes ?? missing(`${module}.weight`);
    const scales = stored.scales ?? missing(`${module}.scales`);
    return {
      codes: virtualTensor(codes.name, "u8", shape, codes.file, (to, from) => codes.read(to, from)),
      scales: virtualTensor(scales.name, "f32", scales.shape, scales.file, (to, from) => {
        scales.read(to, from);
        this.checkScales(scales.name, to, from);
      }),
    };
  }

  protected checkScales(tensor: string, bytes: Uint8Array, byteOffset: number): void {
    // Whole scales only: what a range has of its first and its last one says nothing.
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = (4 - (byteOffset % 4)) % 4; at + 4 <= bytes.length; at += 4) {
      const scale = view.getFloat32(at, true);
      if (Number.isFinite(scale)) continue;
      throw new CheckpointError("NON_FINITE_SCALE", `${tensor}: expected finite scales but received ${scale}`, {
        tensor,
        received: scale,
      });
    }
  }
}

export function expectTensor(
  name: string,
  tensor: CheckpointTensor | null,
  dtype: string,
  shape: readonly number[],
): void {
  if (tensor === null) throw missingError(name);
  const expected = `${dtype} [${shape.join(", ")}]`;
  const received = `${tensor.dtype} [${tensor.shape.join(", ")}]`;
  if (expected === received) return;
  throw new CheckpointError("SHAPE_MISMATCH", `${name}: expected ${expected} but received ${received}`, {
    tensor: name,
    expected,
    received,
  });
}

function missingError(tensor: string): CheckpointError {
  return new CheckpointError("MISSING_TENSOR", `${tensor}: expected it in the checkpoint but received none`, {
    tensor,
  });
}

function missing(tensor: string): never {
  throw missingError(tensor);
}

export function virtualTensor(
  name: string,
  dtype: CheckpointTensor["dtype"],
  shape: readonly number[],
  file: string,
  read: CheckpointTensor["read"],
): CheckpointTensor {
  return { name, dtype, shape, file, read };
}

export function readerOf(content: ArrayBufferView): CheckpointTensor["read"] {
  const bytes = new Uint8Array(content.buffer, content.byteOffset, content.byteLength);
  return (destination, byteOffset) => {
    if (byteOffset < 0 || byteOffset + destination.length > bytes.length) throw new RangeError("outside the tensor");
    destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
  };
}

function floatsOf(tensor: CheckpointTensor): Float32Array {
  const bytes = tensorBytes(tensor);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

export function tensorBytes(tensor: CheckpointTensor): Uint8Array {
  const bytes = new Uint8Array(elementCount(tensor.shape) * dtypeBytes(tensor.dtype));
  tensor.read(bytes, 0);
  return bytes;
}

/** Codes, scales and what they stand for, of a matrix. */
export function quantize(
  values: Float32Array,
  outputs: number,
  inputs: number,
): { readonly codes: Uint8Array; readonly scales: Float32Array; readonly values: Float32Array } {
  const blocks = blocksOf(inputs);
  const scales = new Float32Array(outputs * blocks);
  values.forEach((value, i) => {
    const at = Math.floor(i / inputs) * blocks + Math.floor((i % inputs) / BLOCK);
    scales[at] = Math.max(scales[at] ?? 0, Math.abs(value) / 7);
  });
  const codes = new Uint8Array(Math.ceil(values.length / 2));
  const dequantized = values.map((value, i) => {
    const scale = scales[Math.floor(i / inputs) * blocks + Math.floor((i % inputs) / BLOCK)] ?? 0;
    const code = scale === 0 ? 8 : 8 + Math.max(-8, Math.min(7, Math.round(value / scale)));
    codes[i >> 1] = (codes[i >> 1] ?? 0) | (code << ((i & 1) === 0 ? 4 : 0));
    return (code - 8) * scale;
  });
  return { codes, scales, values: dequantized };
}

/** Pieces of the plugin; those that are not given are honest. */
export interface Pieces {
  readonly name?: string;
  readonly apiVersion?: number;
  readonly createConfig?: (request: QuantizationRequest) => QuantizationConfig;
  readonly loader?: ModelLoader;
}

/** A plugin that registers the same objects whenever it is asked to. */
export function nibblesPlugin({
  name = "nibbles-plugin",
  apiVersion = 1,
  createConfig = (request) => new NibblesConfig(request),
  loader,
}: Pieces = {}): Plugin {
  const factory = { create: createConfig };
  return {
    name,
    apiVersion,
    register(context) {
      context.registerQuantizationConfig(METHOD, factory);
      if (loader !== undefined) context.registerModelLoader(loader);
    },
  };
}
