/** The execution formats of weights, one entry for each kind that models bring. */
import type { FloatDType } from "../../src/core/dtype.js";
import type { Operand } from "../../src/core/operand.js";
import { f32Of, tensorBytes } from "../../src/core/tensor.js";
import type { ActivationLevel } from "../../src/kernels/activation-levels.js";
import type { Kernels, LinearWeight } from "../../src/kernels/kernels.js";
import type { Random } from "../models/weight-types.js";
import { codes, floats, zeros } from "./random-tensors.js";

export interface LinearFormat {
  readonly name: string;
  /** Levels of activations that make a difference. */
  readonly levels: readonly ActivationLevel[];
  /** A weight `[outputs, inputs]`, as a linear method prepares it for `kernels`. */
  readonly make: (kernels: Kernels, outputs: number, inputs: number, random: Random) => MadeWeight;
}

export interface MadeWeight {
  readonly weight: LinearWeight;
  readonly bytes: number;
  readonly release: (kernels: Kernels) => void;
}

const AMPLITUDE = 0.03;
/** bitsandbytes' NF4: quantiles of a normal distribution (QLoRA, appendix E), to four digits. */
const NF4 = [
  -1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1,
];
const UNSIGNED = Array.from({ length: 16 }, (_, code) => code);
const SIGNED = UNSIGNED.map((code) => code - 8);

export const LINEAR_FORMATS: readonly LinearFormat[] = [
  dense("f32"),
  dense("bf16"),
  dense("f16"),
  code4("NF4", NF4, 64, "f32", false),
  code4("Q4_0", SIGNED, 32, "f16", false),
  code4("Q4_1", UNSIGNED, 32, "f16", true),
  int8("Q8_0", (_inputs) => 32, "f16", 1),
  int8("LLM.int8", (inputs) => inputs, "f32", 1 / 127),
];

function dense(dtype: FloatDType): LinearFormat {
  return {
    name: dtype,
    levels: dtype === "bf16" ? ["f32", "bf16"] : ["f32"],
    make: (kernels, outputs, inputs, random) => {
      const matrix = kernels.bind(floats(dtype, [outputs, inputs], AMPLITUDE, random));
      return prepared(kernels, { format: "dense", matrix }, [matrix]);
    },
  };
}

function code4(
  name: string,
  values: readonly number[],
  blockSize: number,
  valueDType: FloatDType,
  hasMinimums: boolean,
): LinearFormat {
  return {
    name,
    levels: ["f32", "int16", "int8"],
    make: (kernels, outputs, inputs, random) => {
      const perBlock = (): Operand =>
        kernels.bind(floats(valueDType, [outputs, inputs / blockSize], AMPLITUDE, random));
      const table = zeros("f32", [16]);
      f32Of(table).set(values);
      const operands = { codes: kernels.bind(codes("u8", [outputs, inputs / 2], random)), scales: perBlock() };
      const minimums = hasMinimums ? perBlock() : null;
      const codebook = kernels.bind(table);
      const weight: LinearWeight = { format: "code4", ...operands, minimums, codebook, blockSize };
      const { codes: packed, scales } = operands;
      return prepared(kernels, weight, minimums === null ? [packed, scales] : [packed, scales, minimums]);
    },
  };
}

function int8(
  name: string,
  blockOf: (inputs: number) => number,
  valueDType: FloatDType,
  multiplier: number,
): LinearFormat {
  return {
    name,
    levels: ["f32", "int16", "int8"],
    make: (kernels, outputs, inputs, random) => {
      const blockSize = blockOf(inputs);
      const operands = {
        codes: kernels.bind(codes("i8", [outputs, inputs], random)),
        scales: kernels.bind(floats(valueDType, [outputs, inputs / blockSize], AMPLITUDE, random)),
      };
      const weight: LinearWeight = { format: "int8", ...operands, minimums: null, blockSize, multiplier };
      return prepared(kernels, weight, [operands.codes, operands.scales]);
    },
  };
}

/** `operands` are those that a call reads in full. */
function prepared(kernels: Kernels, given: LinearWeight, operands: readonly Operand[]): MadeWeight {
  const weight = kernels.prepareLinear(given);
  const release = (owner: Kernels): void => {
    if (weight.format === "prepared") owner.releaseLinear(weight);
    for (const operand of operands) owner.release(operand);
  };
  return { weight, bytes: operands.reduce((sum, { tensor }) => sum + tensorBytes(tensor), 0), release };
}
