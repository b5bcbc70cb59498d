/** The models that benches run: their shapes, and what one token costs in each. */

/** Extents of a llama-architecture decoder. */
export interface ModelShape {
  readonly name: string;
  readonly hidden: number;
  readonly intermediate: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly vocabulary: number;
  readonly contextLength: number;
  readonly ropeTheta: number;
  /** Whether the output head is the table of embeddings. */
  readonly tied: boolean;
}

/** HuggingFaceTB/SmolLM2-135M-Instruct: the sample model, with its real weights. */
export const SMOLLM2_135M: ModelShape = {
  name: "smollm2-135m",
  hidden: 576,
  intermediate: 1536,
  layers: 30,
  heads: 9,
  kvHeads: 3,
  headSize: 64,
  vocabulary: 49_152,
  contextLength: 8192,
  ropeTheta: 100_000,
  tied: true,
};

/** meta-llama/Llama-3.2-1B, without its stretched rotary frequencies, which cost nothing. */
export const LLAMA_1B: ModelShape = {
  name: "llama-1b",
  hidden: 2048,
  intermediate: 8192,
  layers: 16,
  heads: 32,
  kvHeads: 8,
  headSize: 64,
  vocabulary: 128_256,
  contextLength: 32_768,
  ropeTheta: 500_000,
  tied: true,
};

/** Two layers of the same with few tokens to choose from: long contexts in little time. */
export const LLAMA_1B_LAYERS: ModelShape = { ...LLAMA_1B, name: "llama-1b-layers", layers: 2, vocabulary: 4096 };

/** Four layers of meta-llama/Llama-3.1-8B with few tokens to choose from: what its layers cost, in little memory. */
export const LLAMA_8B_LAYERS: ModelShape = {
  name: "llama-8b-layers",
  hidden: 4096,
  intermediate: 14_336,
  layers: 4,
  heads: 32,
  kvHeads: 8,
  headSize: 128,
  vocabulary: 4096,
  contextLength: 32_768,
  ropeTheta: 500_000,
  tied: false,
};

export const SHAPES: readonly ModelShape[] = [SMOLLM2_135M, LLAMA_1B, LLAMA_1B_LAYERS, LLAMA_8B_LAYERS];

/** A matrix of a model, by its name in GGUF files: `[outputs, inputs]`. */
export interface MatrixShape {
  readonly name: string;
  readonly outputs: number;
  readonly inputs: number;
}

/** The matrices of one layer, in the order in which a pass reads them. */
export function layerMatrices(shape: ModelShape, layer: number): MatrixShape[] {
  const { hidden, intermediate } = shape;
  const queries = shape.heads * shape.headSize;
  const keys = shape.kvHeads * shape.headSize;
  const matrix = (part: string, outputs: number, inputs: number): MatrixShape => ({
    name: `blk.${layer}.${part}.weight`,
    outputs,
    inputs,
  });
  return [
    matrix("attn_q", queries, hidden),
    matrix("attn_k", keys, hidden),
    matrix("attn_v", keys, hidden),
    matrix("attn_output", hidden, queries),
    matrix("ffn_gate", intermediate, hidden),
    matrix("ffn_up", intermediate, hidden),
    matrix("ffn_down", hidden, intermediate),
  ];
}

/** Weights that every token is multiplied with: all layers, and the output head apart. */
export function weightCounts(shape: ModelShape): { readonly layers: number; readonly head: number } {
  const layer = layerMatrices(shape, 0).reduce((sum, { outputs, inputs }) => sum + outputs * inputs, 0);
  return { layers: shape.layers * layer, head: shape.vocabulary * shape.hidden };
}
