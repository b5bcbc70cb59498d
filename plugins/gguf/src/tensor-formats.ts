/** The ggml tensor types this plugin reads. Numbers: `enum ggml_type` in ggml.h. */
import type { DType } from "shardloom/plugin";
import { BLOCK_ELEMENTS, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 } from "./block-formats.js";
import { K_BLOCK_ELEMENTS, Q4_K, Q5_K, Q6_K } from "./k-block-formats.js";
import type { BlockFormat } from "./unpacking.js";

export interface TensorFormat {
  /** Name in ggml. */
  readonly name: string;
  /** What a checkpoint reports: the stored type, or f32, which holds the values of all block formats exactly. */
  readonly dtype: DType;
  readonly blockElements: number;
  readonly blockBytes: number;
  /** How blocks come apart; null where the stored elements are those of `dtype`. */
  readonly blocks: BlockFormat | null;
}

const plain = (name: string, dtype: DType, blockBytes: number): TensorFormat => ({
  name,
  dtype,
  blockElements: 1,
  blockBytes,
  blocks: null,
});

const blocks = (name: string, blockElements: number, blockBytes: number, format: BlockFormat): TensorFormat => ({
  name,
  dtype: "f32",
  blockElements,
  blockBytes,
  blocks: format,
});

const formats: ReadonlyMap<number, TensorFormat> = new Map([
  [0, plain("F32", "f32", 4)],
  [1, plain("F16", "f16", 2)],
  [2, blocks("Q4_0", BLOCK_ELEMENTS, 18, Q4_0)],
  [3, blocks("Q4_1", BLOCK_ELEMENTS, 20, Q4_1)],
  [6, blocks("Q5_0", BLOCK_ELEMENTS, 22, Q5_0)],
  [7, blocks("Q5_1", BLOCK_ELEMENTS, 24, Q5_1)],
  [8, blocks("Q8_0", BLOCK_ELEMENTS, 34, Q8_0)],
  [12, blocks("Q4_K", K_BLOCK_ELEMENTS, 144, Q4_K)],
  [13, blocks("Q5_K", K_BLOCK_ELEMENTS, 176, Q5_K)],
  [14, blocks("Q6_K", K_BLOCK_ELEMENTS, 210, Q6_K)],
  [30, plain("BF16", "bf16", 2)],
]);

/** Names of types that exist but are not read here, for messages. */
const otherNames: ReadonlyMap<number, string> = new Map([
  [9, "Q8_1"],
  [10, "Q2_K"],
  [11, "Q3_K"],
  [15, "Q8_K"],
  [16, "IQ2_XXS"],
  [17, "IQ2_XS"],
  [18, "IQ3_XXS"],
  [19, "IQ1_S"],
  [20, "IQ4_NL"],
  [21, "IQ3_S"],
  [22, "IQ2_S"],
  [23, "IQ4_XS"],
  [24, "I8"],
  [25, "I16"],
  [26, "I32"],
  [27, "I64"],
  [28, "F64"],
  [29, "IQ1_M"],
  [34, "TQ1_0"],
  [35, "TQ2_0"],
  [39, "MXFP4"],
]);

/** Null for a type this plugin does not read. */
export function tensorFormat(type: number): TensorFormat | null {
  return formats.get(type) ?? null;
}

export function tensorTypeName(type: number): string {
  return formats.get(type)?.name ?? otherNames.get(type) ?? `type ${type}`;
}

export const READABLE_FORMATS: readonly string[] = [...formats.values()].map(({ name }) => name);
