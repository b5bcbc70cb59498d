/**
 * Whole checkpoints quantized, into the tensors that transformers and bitsandbytes write, to the byte: names, shapes and
 * settings are those of `save_pretrained` (transformers 5.24, bitsandbytes 0.50).
 */
import {
  type CheckpointQuantizationPlan,
  type CheckpointQuantizationRequest,
  type CheckpointQuantizer,
  type CheckpointTensor,
  elementCount,
  type QuantizedTensor,
} from "shardloom/plugin";
import { invalid } from "./checkpoint-error.js";
import { CODEBOOKS, DYNAMIC_MAP, type FourBitType } from "./codebooks.js";
import { type NestedAbsmax, quantizeAbsmax } from "./double-quant.js";
import { InFlightEightBit, InFlightFourBit } from "./in-flight.js";
import { DEFAULT_SKIP_MODULES, type InFlightOptions, parseCheckpointOptions } from "./options.js";
import { formatQuantState, NESTED_BLOCK, type OriginalDType, STATE_PREFIX } from "./quant-state.js";
import { blockCount, packedBytes } from "./quantize-4bit.js";
import { TableSlot } from "./quantized-weight.js";
import { formatSettings } from "./settings.js";
import { skips } from "./skip-modules.js";

const WEIGHT = ".weight";

/** No number is longer in JSON: a sign, 17 digits, a point and an exponent. */
const MAX_FLOAT_DIGITS = 24;

/** A quantizer into one of the formats. */
export function checkpointQuantizer(type: FourBitType | "int8"): CheckpointQuantizer {
  return { plan: (request) => plan(type, request) };
}

/** Throws OptionError `INVALID_OPTION` or `UNKNOWN_OPTION`. */
function plan(
  type: FourBitType | "int8",
  { options, skipModules }: CheckpointQuantizationRequest,
): CheckpointQuantizationPlan {
  const quantization = parseCheckpointOptions(type, options);
  const skipped = skipModules ?? DEFAULT_SKIP_MODULES;
  return {
    settings: formatSettings(quantization, skipModules),
    replace(weight) {
      const module = weight.name.slice(0, -WEIGHT.length);
      if (skips(skipped, module)) return null;
      return type === "int8" ? eightBitTensors(weight, module) : fourBitTensors(weight, { ...quantization, type });
    },
  };
}

interface FourBitQuantization extends InFlightOptions {
  readonly type: FourBitType;
}

function fourBitTensors(source: CheckpointTensor, quantization: FourBitQuantization): readonly QuantizedTensor[] {
  const { type, blockSize, doubleQuant } = quantization;
  const { name, shape } = source;
  const dtype = originalDType(source);
  // What is read of it are the scales before double quantization.
  const weight = new InFlightFourBit(source, { type, blockSize, doubleQuant: false }, new TableSlot());
  const elements = elementCount(shape);
  const blocks = blockCount(elements, blockSize);
  const codes = bytes(name, [packedBytes(elements), 1], (out, first) => weight.readCodes(out, first));
  const map = floats(`${name}.quant_map`, 16, (out, first) =>
    out.set(CODEBOOKS[type].subarray(first, first + out.length)),
  );
  const stateName = `${name}.${STATE_PREFIX}${type}`;
  const state = { type, blockSize, dtype, shape };
  if (!doubleQuant) {
    const absmax = floats(`${name}.absmax`, blocks, (out, first) => weight.readScales(out, first));
    return [codes, absmax, map, constant(stateName, formatQuantState({ ...state, nested: null }))];
  }
  let quantized: NestedAbsmax | undefined;
  const nested = (): NestedAbsmax => {
    if (quantized === undefined) {
      const absmax = new Float32Array(blocks);
      weight.readScales(absmax, 0);
      quantized = quantizeAbsmax(absmax);
    }
    return quantized;
  };
  const stateBytes = (offset: number): Uint8Array => {
    return formatQuantState({ ...state, nested: { blockSize: NESTED_BLOCK, offset } });
  };
  return [
    codes,
    bytes(`${name}.absmax`, [blocks], (out, first) => out.set(nested().codes.subarray(first, first + out.length))),
    map,
    floats(`${name}.nested_absmax`, blockCount(blocks, NESTED_BLOCK), (out, first) => {
      out.set(nested().absmax.subarray(first, first + out.length));
    }),
    floats(`${name}.nested_quant_map`, DYNAMIC_MAP.length, (out, first) => {
      out.set(DYNAMIC_MAP.subarray(first, first + out.length));
    }),
    {
      // How many digits the offset has is not known before.
      ...bytes(stateName, [stateBytes(0).length + MAX_FLOAT_DIGITS], (out, first) => {
        out.set(stateBytes(nested().offset).subarray(first, first + out.length));
      }),
      settledShape: () => [stateBytes(nested().offset).length],
    },
  ];
}

function eightBitTensors(source: CheckpointTensor, module: string): readonly QuantizedTensor[] {
  const weight = new InFlightEightBit(source, new TableSlot());
  const [rows] = weight.shape;
  return [
    { ...bytes(source.name, weight.shape, (out, first) => weight.readCodes(out, first)), dtype: "i8" },
    floats(`${module}.SCB`, rows, (out, first) => weight.readScales(out, first)),
    // 0: codes lie row by row.
    { ...constant(`${module}.weight_format`, new Uint8Array(1)), shape: [] },
  ];
}

/** dtype of a weight in torch's words. Throws CheckpointError `DTYPE_MISMATCH`. */
function originalDType(source: CheckpointTensor): OriginalDType {
  const { dtype } = source;
  if (dtype === "bf16") return "bfloat16";
  if (dtype === "f16") return "float16";
  if (dtype === "f32") return "float32";
  throw invalid("DTYPE_MISMATCH", source, "f32, bf16 or f16 to quantize", dtype);
}

function constant(name: string, content: Uint8Array): QuantizedTensor {
  return bytes(name, [content.length], (out, first) => out.set(content.subarray(first, first + out.length)));
}

/** A u8 tensor; `fill` computes bytes from `first` on. */
function bytes(
  name: string,
  shape: readonly number[],
  fill: (out: Uint8Array, first: number) => void,
): QuantizedTensor {
  return { name, dtype: "u8", shape, read: fill };
}

/** An f32 vector; `fill` computes elements from `first` on. */
function floats(name: string, length: number, fill: (out: Float32Array, first: number) => void): QuantizedTensor {
  return {
    name,
    dtype: "f32",
    shape: [length],
    read(destination, byteOffset) {
      const first = Math.floor(byteOffset / 4);
      const elements = new Float32Array(Math.ceil((byteOffset + destination.length) / 4) - first);
      fill(elements, first);
      destination.set(new Uint8Array(elements.buffer, byteOffset - first * 4, destination.length));
    },
  };
}
