/** Weights of blocks of codes for kernel tests, and linear layers with them. */

import fc from "fast-check";
import type { Operand } from "../../src/core/operand.js";
import { bytesOf, f32Of, type Tensor } from "../../src/core/tensor.js";
import type { Kernels, LinearWeight } from "../../src/kernels/kernels.js";
import { Random, scoped, zeros } from "./tensors.js";

export type Format = "code4" | "int8";
export const FORMATS: readonly Format[] = ["code4", "int8"];

/** A weight of blocks of codes, not yet bound. */
export interface BlockWeight {
  readonly format: Format;
  readonly codes: Tensor;
  readonly codebook: Tensor;
  readonly scales: Tensor;
  readonly minimums: Tensor | null;
  readonly blockSize: number;
  readonly multiplier: number;
}

export interface Extents {
  readonly outputs: number;
  readonly inputs: number;
  readonly blockSize: number;
  readonly minimums?: boolean;
  /** dtype of scales and minimums, f32 by default. */
  readonly values?: "f32" | "f16";
  readonly multiplier?: number;
}

export interface Case {
  readonly weight: BlockWeight;
  readonly x: Tensor;
  readonly bias: Tensor | null;
  readonly rows: number;
  /** Columns of the output before and after those of the weight. */
  readonly margins: readonly [number, number];
}

export type Bind = (tensor: Tensor) => Operand;

export function codesOf(format: Format, outputs: number, inputs: number, next: () => number): Tensor {
  const codes = format === "code4" ? zeros("u8", [outputs, inputs / 2]) : zeros("i8", [outputs, inputs]);
  const bytes = bytesOf(codes);
  for (let i = 0; i < bytes.length; i++) bytes[i] = next();
  return codes;
}

/** Linear codes, whose kernels may differ from those of any codebook. */
function linearCodebook(zero: number): Tensor {
  const tensor = zeros("f32", [16]);
  f32Of(tensor).set(Array.from({ length: 16 }, (_, code) => code - zero));
  return tensor;
}

export function makeWeight(random: Random, format: Format, extents: Extents): BlockWeight {
  const { outputs, inputs, blockSize, minimums = false, values = "f32", multiplier = 1 } = extents;
  const blocks = [outputs, inputs / blockSize];
  return {
    format,
    codes: codesOf(format, outputs, inputs, () => random.below(256)),
    codebook: random.below(2) === 0 ? random.floats("f32", [16]) : linearCodebook(random.below(17)),
    scales: random.floats(values, blocks, format === "code4" ? 1 : 1 / 128),
    minimums: minimums ? random.floats(values, blocks, 0.5) : null,
    blockSize,
    multiplier,
  };
}

export function bound(
  bind: Bind,
  { format, codes, codebook, scales, minimums, blockSize, multiplier }: BlockWeight,
): LinearWeight {
  const shared = {
    codes: bind(codes),
    scales: bind(scales),
    minimums: minimums === null ? null : bind(minimums),
    blockSize,
  };
  return format === "code4" ? { format, codebook: bind(codebook), ...shared } : { format, multiplier, ...shared };
}

export function makeCase(
  seed: number,
  format: Format,
  rows: number,
  extents: Extents,
  margins: [number, number] = [0, 0],
): Case {
  const random = new Random(seed);
  return {
    weight: makeWeight(random, format, extents),
    x: random.floats("f32", [rows, extents.inputs]),
    bias: seed % 2 === 0 ? null : random.floats("f32", [margins[0] + extents.outputs + margins[1]]),
    rows,
    margins,
  };
}

export function apply(
  kernels: Kernels,
  { x, bias, rows, margins: [before, after] }: Case,
  outputs: number,
  weight: (bind: Bind) => LinearWeight,
): Tensor {
  const width = before + outputs + after;
  const out = zeros("f32", [rows, width]);
  f32Of(out).fill(7);
  scoped(kernels, (bind) => {
    kernels.linear(bind(out), bind(x), weight(bind), bias === null ? null : bind(bias), rows, before);
  });
  return out;
}

/** Block sizes that the kernels of a format take for some number of blocks, as `[blockSize, inputs]`. */
export const blockings = fc
  .tuple(fc.constantFrom(16, 32, 48, 64, 80, 128), fc.integer({ min: 1, max: 12 }))
  .map(([blockSize, blocks]) => [blockSize, blockSize * blocks] as const);
