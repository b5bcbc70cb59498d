/** What shardloom promises its users of every plugin: the conformance kit, over all formats of bitsandbytes. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { CheckpointTensor } from "shardloom/plugin";
import {
  type MatrixToStore,
  type ModelInFormatOptions,
  modelInFormat,
  type PluginFixture,
  type SafetensorsFile,
  type StoredMatrix,
  testPlugin,
} from "shardloom/testing";
import { plugin } from "../src/index.js";
import {
  dequantizeSlowly,
  floatsOfTensor,
  openOracle,
  type StoredOptions,
  storeFourBit,
  storeInt8,
  viewOf,
} from "./fixture.js";

const settings = { quant_method: "bitsandbytes" };

/** Absmax and its like. */
const finite = (tensor: string): boolean => /\.(absmax|nested_absmax|nested_quant_map|SCB)$/.test(tensor);

/** A model that transformers wrote, and what bitsandbytes makes of its weights. */
function published(name: string): PluginFixture {
  const path = fileURLToPath(new URL(`../../../../test/fixtures/tiny/${name}`, import.meta.url));
  let oracle: SafetensorsFile | undefined;
  const expected = (weight: string): Float32Array | undefined => {
    oracle ??= openOracle(name);
    const tensor = oracle.tensors.get(weight);
    return tensor === undefined ? undefined : floatsOfTensor(tensor);
  };
  after(() => oracle?.close());
  return { name, model: path, expected, finite, skip: ["embedding"] };
}

/** A model whose matrices are stored by this package's quantizer, and read by an implementation that shares no code. */
function stored(name: string, options: StoredOptions, more: ModelInFormatOptions = {}): PluginFixture {
  const store = ({ module, shape, values, role }: MatrixToStore): StoredMatrix | null => {
    if (role === "embedding") return null;
    const tensors = storeFourBit(module, shape, values, options);
    return { tensors, values: dequantizeSlowly(tensors, module) };
  };
  return { name, ...modelInFormat({ settings, store, ...more }), finite };
}

function storedInt8({ module, shape, values, role }: MatrixToStore): StoredMatrix | null {
  if (role === "embedding") return null;
  const tensors = storeInt8(module, shape, values);
  return { tensors, values: int8Values(module, shape, tensors) };
}

/** (code * SCB) * f32(1/127), with a rounding each. */
function int8Values(module: string, [, inputs]: readonly [number, number], tensors: CheckpointTensor[]): Float32Array {
  const whole = viewOf(tensors).tensors.get(`${module}.weight`) ?? assert.fail(module);
  const find = (name: string) => tensors.find((tensor) => tensor.name === name) ?? assert.fail(name);
  const scales = floatsOfTensor(find(`${module}.SCB`));
  const codes = new Int8Array(whole.shape.reduce((product, extent) => product * extent, 1));
  find(`${module}.weight`).read(new Uint8Array(codes.buffer), 0);
  const multiplier = Math.fround(1 / 127);
  return Float32Array.from(codes, (code, i) => {
    return Math.fround(Math.fround(code * (scales[Math.floor(i / inputs)] ?? 0)) * multiplier);
  });
}

interface InFlightVariant extends StoredOptions {
  /** Of the output head, which stays as it is without. */
  readonly headType?: "int8";
  /** Whether the head is the embedding. */
  readonly tied?: boolean;
}

/** A plain model that is quantized while it is loaded: to what its weights would be stored as. */
function inFlight(name: string, { headType, tied = false, ...options }: InFlightVariant): PluginFixture {
  const plain = modelInFormat({ config: { tie_word_embeddings: tied } });
  const weights = new Map([...plain.model.tensors()].map((tensor) => [tensor.name, tensor]));
  return {
    name,
    ...plain,
    quantization: "bitsandbytes",
    quantizationOptions: { ...options, ...(headType === undefined ? {} : { headType }) },
    expected(weight) {
      const tensor = weights.get(weight);
      const module = weight.slice(0, -".weight".length);
      if (tensor === undefined) return undefined;
      if (headType !== undefined && module === (tied ? "model.embed_tokens" : "lm_head")) {
        const [rows = 0, columns = 0] = tensor.shape;
        return int8Values(module, [rows, columns], storeInt8(module, [rows, columns], floatsOfTensor(tensor)));
      }
      if (/embed_tokens|lm_head/.test(weight)) return undefined;
      return dequantizeSlowly(storeFourBit(module, tensor.shape, floatsOfTensor(tensor), options), module);
    },
  };
}

const int8Model = modelInFormat({ settings, store: storedInt8 });

const fixtures: readonly PluginFixture[] = [
  published("llama/nf4-dq"),
  // Rows of 96 or 100 codes: blocks of 64 and 128 run across rows, and are cut.
  stored("fp4", { type: "fp4", blockSize: 128 }),
  stored("nf4, fused on disk", { doubleQuant: true }, { fused: true, config: { hidden_size: 100 } }),
  { name: "int8", ...int8Model, finite },
  {
    name: "int8 activations",
    ...int8Model,
    quantization: "bitsandbytes",
    quantizationOptions: { int8Activations: true },
    finite,
    // Activations are rounded to 8 bits of the largest of a row, outputs to f16.
    applyTolerance: 2 ** -6,
    logitsTolerance: 0,
  },
  inFlight("nf4 in flight", { type: "nf4", doubleQuant: true }),
  // Layers without a head among them are refused the option: that they are served is said above.
  { ...inFlight("head in int8", { type: "nf4", headType: "int8" }), skip: ["embedding", "merged", "qkv"] },
  {
    ...inFlight("tied head in int8", { type: "nf4", headType: "int8", tied: true }),
    skip: ["replicated", "column", "row", "merged", "qkv"],
  },
];

describe("@shardloom/bitsandbytes keeps what a plugin promises", () => {
  for (const { name, run } of testPlugin(plugin, fixtures)) it(name, run);
});
