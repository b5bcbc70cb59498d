/** Small models of any shape in any format, from a record of small integers that shrinks to one which can be read. */
import {
  plugin as bitsandbytes,
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
} from "@shardloom/bitsandbytes";
import fc from "fast-check";
import type { JsonObject } from "../../src/core/json.js";
import type { Plugin } from "../../src/loading/plugins.js";
import {
  type MatrixToStore,
  type MemoryModel,
  memoryTensor,
  modelInFormat,
  type StoredMatrix,
} from "../../src/testing/index.js";
import { blocksOf, METHOD, nibblesPlugin, quantize } from "./broken-plugins/nibbles.js";

const FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3"] as const;
const DTYPES = ["float32", "bfloat16", "float16"] as const;
const FORMATS = ["plain", "nf4", "fp4", "int8", "nf4 in flight", "fp4 in flight", "int8 in flight", "nibbles"] as const;
type Format = (typeof FORMATS)[number];

/** Everything that makes a case; the smaller the numbers, the simpler the case. */
interface Numbers {
  readonly family: number;
  readonly format: number;
  readonly kvHeads: number;
  /** Query heads of a KV head. */
  readonly group: number;
  /** Columns of a head, halved. */
  readonly halfHead: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly vocabulary: number;
  readonly layers: number;
  readonly tied: boolean;
  readonly dtype: number;
  /** Position among the world sizes that the model can be split into. */
  readonly ranks: number;
  /** Of a block, as a power of two from 32 on. */
  readonly block: number;
  readonly nested: boolean;
  readonly seed: number;
}

export interface RandomModel {
  readonly model: MemoryModel;
  readonly worldSize: number;
  readonly seed: number;
  readonly plugin: Plugin;
  readonly quantization?: string;
  readonly quantizationOptions?: JsonObject;
  /** Columns at whose multiples the format can be cut. */
  readonly unit: number;
  /** The case in one line. */
  toString(): string;
}

export interface RandomModelOptions {
  /** Formats to draw from; all by default. The first is the simplest. */
  readonly formats?: readonly Format[];
  /** Serves the format "nibbles". */
  readonly nibbles?: Plugin;
}

/** Any model in one of some formats; fast-check shows it as one line. */
export function randomModels({
  formats = FORMATS,
  nibbles = nibblesPlugin(),
}: RandomModelOptions = {}): fc.Arbitrary<RandomModel> {
  const numbers = fc.record<Numbers>({
    family: fc.nat(FAMILIES.length - 1),
    format: fc.nat(formats.length - 1),
    kvHeads: fc.integer({ min: 1, max: 4 }),
    group: fc.integer({ min: 1, max: 4 }),
    halfHead: fc.integer({ min: 1, max: 8 }),
    hidden: fc.integer({ min: 4, max: 80 }),
    intermediate: fc.integer({ min: 4, max: 100 }),
    vocabulary: fc.integer({ min: 4, max: 90 }),
    layers: fc.integer({ min: 1, max: 2 }),
    tied: fc.boolean(),
    dtype: fc.nat(DTYPES.length - 1),
    ranks: fc.nat(7),
    block: fc.nat(3),
    nested: fc.boolean(),
    seed: fc.nat(0xffff),
  });
  return numbers.map((given) => describeModel(given, formats[given.format] ?? "plain", nibbles));
}

function describeModel(given: Numbers, format: Format, nibbles: Plugin): RandomModel {
  // Two codes to a byte: rows of whole bytes.
  const even = (size: number): number => (format === "nibbles" ? size + (size % 2) : size);
  const sizes = { hidden: even(given.hidden), intermediate: even(given.intermediate) };
  const family = FAMILIES[given.family] ?? "Llama";
  const heads = given.kvHeads * given.group;
  const most = Math.min(8, heads, sizes.intermediate, given.vocabulary);
  const worldSize = most === 1 ? 1 : 2 + (given.ranks % (most - 1));
  const config: JsonObject = {
    architectures: [`${family}ForCausalLM`],
    hidden_size: sizes.hidden,
    intermediate_size: sizes.intermediate,
    num_attention_heads: heads,
    num_key_value_heads: given.kvHeads,
    head_dim: 2 * given.halfHead,
    num_hidden_layers: given.layers,
    vocab_size: given.vocabulary,
    tie_word_embeddings: given.tied,
    dtype: DTYPES[given.dtype] ?? "float32",
    ...(family === "Mistral" ? { sliding_window: 1 + (given.seed % 5) } : {}),
    ...(family === "Llama" && given.seed % 2 === 1 ? { attention_bias: true, mlp_bias: true } : {}),
  };
  const blockSize = 32 << given.block;
  const stored = store(format, blockSize, given.nested);
  const type = format.split(" ")[0] ?? "";
  const { model } = modelInFormat({
    config,
    fused: family === "Phi3",
    seed: given.seed,
    ...(stored === null
      ? {}
      : { store: stored, settings: { quant_method: format === "nibbles" ? METHOD : "bitsandbytes" } }),
  });
  const blocks = type === "int8" ? {} : { blockSize, doubleQuant: given.nested };
  const described =
    format === "plain" || format === "nibbles" || type === "int8"
      ? ""
      : ` in blocks of ${blockSize}${given.nested ? ", nested" : ""}`;
  const line =
    `${family} of ${given.layers} layer${given.layers > 1 ? "s" : ""}: ${heads} heads of ${2 * given.halfHead}, ${given.kvHeads} of them KV, ` +
    `hidden ${sizes.hidden}, intermediate ${sizes.intermediate}, vocabulary ${given.vocabulary}, ` +
    `${given.tied ? "tied" : "untied"}, ${DTYPES[given.dtype]}, ${format}${described}, seed ${given.seed}, on ${worldSize} ranks`;
  return {
    model,
    worldSize,
    seed: given.seed,
    plugin: format === "nibbles" ? nibbles : bitsandbytes,
    ...(format.endsWith("in flight") ? { quantization: "bitsandbytes", quantizationOptions: { type, ...blocks } } : {}),
    unit: format === "nibbles" ? 2 : 1,
    toString: () => line,
  };
}

type Store = (matrix: MatrixToStore) => StoredMatrix | null;

/** How a format stores the matrices of linear layers; null for a model that is plain on disk. */
function store(format: string, blockSize: number, nested: boolean): Store | null {
  const storeLinear = storeOf(format, blockSize, nested);
  return storeLinear === null ? null : (matrix) => (matrix.role === "embedding" ? null : storeLinear(matrix));
}

function storeOf(format: string, blockSize: number, nested: boolean): Store | null {
  switch (format) {
    case "nf4":
    case "fp4":
      return (matrix) => storeFourBit(matrix, format, blockSize, nested);
    case "int8":
      return storeInt8;
    case "nibbles":
      return storeNibbles;
    default:
      return null;
  }
}

function storeNibbles({ module, shape: [outputs, inputs], values }: MatrixToStore): StoredMatrix {
  const { codes, scales, values: dequantized } = quantize(values, outputs, inputs);
  const tensors = [
    memoryTensor(`${module}.weight`, "u8", [(outputs * inputs) / 2], codes),
    memoryTensor(`${module}.scales`, "f32", [outputs, blocksOf(inputs)], scales),
  ];
  return { tensors, values: dequantized };
}

/** As the package's own quantizer does. */
function storeFourBit(
  { module, shape, values }: MatrixToStore,
  type: FourBitType,
  blockSize: number,
  isNested: boolean,
): StoredMatrix {
  const name = `${module}.weight`;
  const absmax = new Float32Array(blockCount(values.length, blockSize));
  const codes = new Uint8Array(packedBytes(values.length));
  findAbsmax(values, blockSize, absmax, { tensor: name, firstElement: 0 });
  encode(type, values, blockSize, absmax, codes);
  const nested = isNested ? quantizeAbsmax(absmax) : null;
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
  if (nested === null) return { tensors: [...tensors, memoryTensor(`${name}.absmax`, "f32", [absmax.length], absmax)] };
  return {
    tensors: [
      ...tensors,
      memoryTensor(`${name}.absmax`, "u8", [absmax.length], nested.codes),
      memoryTensor(`${name}.nested_absmax`, "f32", [nested.absmax.length], nested.absmax),
      memoryTensor(`${name}.nested_quant_map`, "f32", [256], DYNAMIC_MAP),
    ],
  };
}

function storeInt8({ module, shape: [outputs, inputs], values }: MatrixToStore): StoredMatrix {
  const codes = new Int8Array(values.length);
  const scales = new Float32Array(outputs);
  quantizeRows(Float32Array.from(values), inputs, codes, scales, module, 0);
  const tensors = [
    memoryTensor(`${module}.weight`, "i8", [outputs, inputs], codes),
    memoryTensor(`${module}.SCB`, "f32", [outputs], scales),
    memoryTensor(`${module}.weight_format`, "u8", [], new Uint8Array(1)),
  ];
  return { tensors };
}
