/** What config.json says alike in all families that the decoder serves. */
import type { JsonObject } from "../core/json.js";
import { type ConfigComplaint, ConfigReader } from "./config-reader.js";
import type { DecoderConfig } from "./decoder.js";
import { parseRope } from "./rope-config.js";

/** What a family adds to, or changes of, the common part. */
export type FamilyConfig = Partial<DecoderConfig> & Pick<DecoderConfig, "architecture">;

/**
 * Reads config.json. `family` says what it means in this family. Throws CheckpointError `INVALID_CONFIG` or
 * UnsupportedError `UNSUPPORTED_CONFIG`, `UNSUPPORTED_ROPE`, or tells `complain` of each of them.
 */
export function parseDecoderConfig(
  json: JsonObject,
  family: (config: ConfigReader) => FamilyConfig,
  complain?: ConfigComplaint,
): DecoderConfig {
  const config = new ConfigReader(json, complain);
  config.require("hidden_act", "silu");
  const hiddenSize = config.size("hidden_size");
  const layers = config.size("num_hidden_layers");
  const heads = config.size("num_attention_heads");
  const headSize = config.has("head_dim") ? config.size("head_dim") : hiddenSize / heads;
  const known = config.accepted("hidden_size", "num_attention_heads", "head_dim");
  if (known && (!Number.isInteger(headSize) || headSize % 2 !== 0)) {
    config.refuse("head_dim", "an even whole number (hidden_size / num_attention_heads if absent)", headSize);
  }
  const { theta, scaling } = parseRope(config);
  return {
    hiddenSize,
    layers,
    heads,
    kvHeads: config.size("num_key_value_heads", heads),
    headSize,
    vocabularySize: config.size("vocab_size"),
    maxPositions: config.size("max_position_embeddings", 2048),
    dtype: config.dtype(),
    endOfSequenceIds: config.tokenIds("eos_token_id"),
    intermediateSize: config.size("intermediate_size"),
    rmsNormEpsilon: config.positive("rms_norm_eps", 1e-6),
    ropeTheta: theta,
    ropeScaling: scaling,
    tiedEmbeddings: config.boolean("tie_word_embeddings", false),
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    queryKeyNorm: false,
    slidingWindows: new Array<number>(layers).fill(0),
    ...family(config),
  };
}

/** One sliding window for all layers, if config.json has one. */
export function sameWindow(config: ConfigReader): readonly number[] {
  const window = config.has("sliding_window") ? config.size("sliding_window") : 0;
  return new Array<number>(config.size("num_hidden_layers")).fill(window);
}

/**
 * Qwen's sliding windows: none unless `use_sliding_window`; then in the layers that `layer_types` names, or from
 * `max_window_layers` on where an older file has no such list.
 */
export function windowsOfSomeLayers(config: ConfigReader): readonly number[] {
  const windows = sameWindow(config);
  if (!config.boolean("use_sliding_window", false)) return windows.map(() => 0);
  const types = config.get("layer_types");
  if (types === null) {
    const first = config.size("max_window_layers", windows.length);
    return windows.map((window, layer) => (layer >= first ? window : 0));
  }
  if (!Array.isArray(types) || types.length !== windows.length) {
    if (config.accepted("num_hidden_layers")) config.refuse("layer_types", `a list of ${windows.length}`, types);
    return windows;
  }
  return windows.map((window, layer) => {
    const type = types[layer];
    if (type === "sliding_attention") return window;
    if (type !== "full_attention" && config.accepted("layer_types")) {
      config.refuse("layer_types", 'a list of "full_attention" and "sliding_attention"', type);
    }
    return 0;
  });
}

const IGNORED = ["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];

/** Tensors that old checkpoints hold and no decoder needs, and the head where it is tied to the embedding. */
export function ignoresByRule(name: string, { tiedEmbeddings }: DecoderConfig): boolean {
  if (IGNORED.some((suffix) => name.endsWith(`.${suffix}`))) return true;
  return tiedEmbeddings && name.startsWith("lm_head.");
}

/** The tensor that another one repeats: with tied weights, the head that some checkpoints hold beside the embedding. */
export function repeatedBy(name: string, { tiedEmbeddings }: DecoderConfig): string | null {
  return tiedEmbeddings && name === "lm_head.weight" ? "model.embed_tokens.weight" : null;
}
