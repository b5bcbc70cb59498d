/** Llama 1 to 3.3 and the many models of their shape, SmolLM2 among them. */

import { decoderFamily } from "./decoder-family.js";
import type { ModelFamily } from "./model.js";

export const llama: ModelFamily = decoderFamily("LlamaForCausalLM", (config) => {
  config.require("pretraining_tp", 1);
  const attentionBias = config.boolean("attention_bias", false);
  return { qkvBias: attentionBias, outputBias: attentionBias, mlpBias: config.boolean("mlp_bias", false) };
});
