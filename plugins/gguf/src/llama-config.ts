/**
 * The configuration of llama-architecture files in the words of config.json.
 * Keys: `class Keys` in gguf/constants.py; values: `LlamaModel.set_gguf_parameters` in convert_hf_to_gguf.py.
 */
import { type JsonObject, UnsupportedError } from "shardloom/plugin";
import { OUTPUT } from "./llama-tensors.js";
import type { Metadata } from "./metadata.js";
import { METHOD } from "./method.js";
import { ropeScaling } from "./rope-scaling.js";
import type { SpecialTokens } from "./special-tokens.js";
import type { StoredTensor } from "./tensor-layout.js";

/**
 * config.json of a llama file. `ropeFrequencies` are the values of its `rope_freqs.weight`, null where it has none.
 *
 * Throws CheckpointError `INVALID_METADATA`, and UnsupportedError for experts, partial rotary embeddings and rope scalings
 * that config.json cannot say.
 */
export function llamaConfig(
  metadata: Metadata,
  tensors: ReadonlyMap<string, StoredTensor>,
  special: SpecialTokens,
  ropeFrequencies: Float32Array | null,
): JsonObject {
  rejectExperts(metadata);
  const hidden = metadata.count("llama.embedding_length");
  const heads = metadata.uniformCount("llama.attention.head_count");
  const headSize = checkHeadSize(metadata, hidden, heads);
  const theta = decimal(metadata.optionalNumber("llama.rope.freq_base") ?? 10_000);
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_act: "silu",
    hidden_size: hidden,
    intermediate_size: metadata.uniformCount("llama.feed_forward_length"),
    num_hidden_layers: metadata.count("llama.block_count"),
    num_attention_heads: heads,
    num_key_value_heads: metadata.optionalUniformCount("llama.attention.head_count_kv") ?? heads,
    head_dim: headSize,
    max_position_embeddings: metadata.count("llama.context_length"),
    rope_theta: theta,
    rope_scaling: ropeScaling(metadata, theta, headSize, ropeFrequencies),
    rms_norm_eps: decimal(metadata.number("llama.attention.layer_norm_rms_epsilon")),
    attention_bias: tensors.has("blk.0.attn_q.bias"),
    mlp_bias: tensors.has("blk.0.ffn_up.bias"),
    tie_word_embeddings: !tensors.has(OUTPUT),
    vocab_size: vocabularySize(metadata, tensors),
    bos_token_id: special.bos,
    eos_token_id: special.eos.length > 1 ? [...special.eos] : (special.eos[0] ?? null),
    pad_token_id: special.pad,
    torch_dtype: torchDType(tensors),
    ...quantizationConfig(tensors),
  };
}

function rejectExperts(metadata: Metadata): void {
  const experts = metadata.optionalCount("llama.expert_count", 0) ?? 0;
  if (experts === 0) return;
  throw new UnsupportedError(
    "UNSUPPORTED_ARCHITECTURE",
    `${metadata.file}: expected a llama model without experts but received one with ${experts}`,
    { file: metadata.file, expected: 0, received: experts },
  );
}

function checkHeadSize(metadata: Metadata, hidden: number, heads: number): number {
  const size = metadata.optionalCount("llama.attention.key_length") ?? hidden / heads;
  if (!Number.isInteger(size)) {
    throw metadata.invalid("llama.embedding_length", `a multiple of ${heads} heads`, String(hidden));
  }
  for (const key of ["llama.attention.value_length", "llama.rope.dimension_count"]) {
    const other = metadata.optionalCount(key) ?? size;
    if (other === size) continue;
    throw new UnsupportedError(
      "UNSUPPORTED_CONFIG",
      `${metadata.file}: expected ${key} to be the head size ${size} but received ${other}`,
      { file: metadata.file, field: key, expected: size, received: other },
    );
  }
  return size;
}

/** Whether the size of the vocabulary is known without reading it. */
export function statesVocabularySize(header: {
  readonly metadata: Metadata;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}): boolean {
  return header.metadata.optionalCount("llama.vocab_size") !== null || header.tensors.has("token_embd.weight");
}

function vocabularySize(metadata: Metadata, tensors: ReadonlyMap<string, StoredTensor>): number {
  const stated = metadata.optionalCount("llama.vocab_size") ?? tensors.get("token_embd.weight")?.shape[0];
  return stated ?? metadata.strings("tokenizer.ggml.tokens").ends.length;
}

/**
 * The narrowest dtype that holds all plainly stored matrices as they are. Those in blocks do not count: they keep their
 * own codes, and where they cannot, their values are f32.
 */
function torchDType(tensors: ReadonlyMap<string, StoredTensor>): string {
  const plain = [...tensors.values()].filter(({ shape, format }) => shape.length > 1 && format.blocks === null);
  const [dtype, ...others] = new Set(plain.map(({ format }) => format.dtype));
  if (others.length > 0) return "float32";
  return dtype === "bf16" ? "bfloat16" : dtype === "f16" ? "float16" : "float32";
}

/** States the method where there are tensors in blocks; transformers states others in the same place. */
function quantizationConfig(tensors: ReadonlyMap<string, StoredTensor>): JsonObject {
  const quantized = [...tensors.values()].some(({ format }) => format.blocks !== null);
  return quantized ? { quantization_config: { quant_method: METHOD } } : {};
}

/** The shortest decimal that is this binary32 value: 1e-5, not 9.999999747378752e-6. */
function decimal(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const shorter = Number(value.toPrecision(digits));
    if (Math.fround(shorter) === Math.fround(value)) return shorter;
  }
  return value;
}
