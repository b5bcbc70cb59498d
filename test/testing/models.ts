/** Models that tests of the simulator are about. */
import { type JsonObject, readJsonObject } from "../../src/core/json.js";
import { fixture } from "../fixture.js";

/** A Llama of so many heads of two columns each, for as many ranks as there can be. */
export function manyHeads(heads: number, kvHeads: number, more: JsonObject = {}): JsonObject {
  return {
    architectures: ["LlamaForCausalLM"],
    hidden_act: "silu",
    hidden_size: 2 * heads,
    head_dim: 2,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    num_hidden_layers: 2,
    intermediate_size: 3 * heads,
    vocab_size: 4 * heads + 3,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
    torch_dtype: "bfloat16",
    ...more,
  };
}

/** Path of a config of a published model, without its weights. */
export function publishedConfig(name: string): string {
  return fixture(`configs/${name}.json`);
}

export interface PublishedModel {
  readonly name: string;
  /** Elements of all tensors, as the authors publish them with the weights. */
  readonly parameters: number;
  readonly layers: number;
}

export const PUBLISHED: readonly PublishedModel[] = [
  { name: "llama-3.1-405b", parameters: 405_853_388_800, layers: 126 },
  { name: "mistral-large", parameters: 122_610_069_504, layers: 88 },
  { name: "qwen2.5-72b", parameters: 72_706_203_648, layers: 80 },
  { name: "qwen3-32b", parameters: 32_762_123_264, layers: 64 },
];

/** Tiny models with weights, and the numbers of ranks that tests split them into: even, uneven, beyond their KV heads. */
export const TINY: readonly { readonly model: string; readonly worldSizes: readonly number[] }[] = [
  { model: "llama", worldSizes: [1, 2, 3, 4] },
  { model: "llama-uneven", worldSizes: [2, 3, 4, 5, 6] },
  { model: "mistral", worldSizes: [2, 3, 5, 8] },
  { model: "qwen2", worldSizes: [2, 3, 4] },
  { model: "qwen3", worldSizes: [2, 4, 5] },
  { model: "phi3", worldSizes: [2, 4, 6] },
];

export function tiny(model: string): string {
  return fixture(`tiny/${model}/bf16`);
}

export function configOf(model: string): JsonObject {
  return readJsonObject(fixture(`tiny/${model}/bf16/config.json`));
}
