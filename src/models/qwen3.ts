/** Qwen 3, dense (Qwen team 2025): norms on query and key heads; the heads need not add up to the hidden size. */
import { windowsOfSomeLayers } from "./decoder-config.js";
import { decoderFamily } from "./decoder-family.js";
import type { ModelFamily } from "./model.js";

export const qwen3: ModelFamily = decoderFamily("Qwen3ForCausalLM", (config) => {
  const attentionBias = config.boolean("attention_bias", false);
  return {
    headSize: config.size("head_dim", 128),
    qkvBias: attentionBias,
    outputBias: attentionBias,
    queryKeyNorm: true,
    slidingWindows: windowsOfSomeLayers(config),
  };
});
