/**
 * Names and order of the tensors of llama-architecture files.
 * Names: `MODEL_TENSOR` and `TENSOR_NAMES` in gguf/constants.py; order: `LlamaModel.permute` in convert_hf_to_gguf.py.
 */
import { CheckpointError } from "shardloom/plugin";
import type { NamedTensor } from "./checkpoint.js";
import type { Metadata } from "./metadata.js";
import type { StoredTensor } from "./tensor-layout.js";

/** Divisors of the rotary frequencies: part of the configuration, not a weight. */
export const ROPE_FREQUENCIES = "rope_freqs.weight";

export const OUTPUT = "output.weight";

const outer: ReadonlyMap<string, string> = new Map([
  ["token_embd", "model.embed_tokens"],
  ["output_norm", "model.norm"],
  ["output", "lm_head"],
]);

const inner: ReadonlyMap<string, string> = new Map([
  ["attn_norm", "input_layernorm"],
  ["attn_q", "self_attn.q_proj"],
  ["attn_k", "self_attn.k_proj"],
  ["attn_v", "self_attn.v_proj"],
  ["attn_output", "self_attn.o_proj"],
  ["ffn_norm", "post_attention_layernorm"],
  ["ffn_gate", "mlp.gate_proj"],
  ["ffn_up", "mlp.up_proj"],
  ["ffn_down", "mlp.down_proj"],
]);

/**
 * Every tensor of a file under its published name. Throws CheckpointError `UNEXPECTED_TENSOR` for one that is no part of
 * the architecture, and `SHAPE_MISMATCH` where rows cannot be heads of rotary pairs.
 */
export function nameLlamaTensors(metadata: Metadata, tensors: ReadonlyMap<string, StoredTensor>): NamedTensor[] {
  const heads = metadata.uniformCount("llama.attention.head_count");
  const keyHeads = metadata.optionalUniformCount("llama.attention.head_count_kv") ?? heads;
  const named: NamedTensor[] = [];
  for (const stored of tensors.values()) {
    if (stored.name === ROPE_FREQUENCIES) continue;
    const { name, part } = publishedName(stored.name, metadata.file);
    const rotaryHeads = part === "attn_q" ? heads : part === "attn_k" ? keyHeads : null;
    if (rotaryHeads !== null) checkHeads(stored, rotaryHeads, metadata.file);
    named.push({ name, stored, rotaryHeads });
  }
  return named;
}

/** `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`, part `attn_q`. */
function publishedName(name: string, file: string): { name: string; part: string } {
  const match = /^(?:blk\.(0|[1-9]\d{0,4})\.)?([a-z_]+)\.(weight|bias)$/.exec(name);
  const [, layer, part = "", kind = ""] = match ?? [];
  const module = (layer === undefined ? outer : inner).get(part);
  if (module === undefined) {
    throw new CheckpointError(
      "UNEXPECTED_TENSOR",
      `${file}: expected the tensors of a llama model but received ${JSON.stringify(name)}`,
      { file, tensor: name, expected: "a tensor of a llama model", received: name },
    );
  }
  return { name: layer === undefined ? `${module}.${kind}` : `model.layers.${layer}.${module}.${kind}`, part };
}

function checkHeads(stored: StoredTensor, heads: number, file: string): void {
  const rows = stored.shape[0] ?? 0;
  if (stored.shape.length <= 2 && rows % (2 * heads) === 0) return;
  const expected = `${heads} heads of an even number of rows`;
  const received = `[${stored.shape.join(", ")}]`;
  throw new CheckpointError(
    "SHAPE_MISMATCH",
    `${file}: expected ${stored.name} to have ${expected} but received ${received}`,
    {
      file,
      tensor: stored.name,
      expected,
      received,
    },
  );
}
