/** Mistral 7B and its successors of the same shape (Jiang et al. 2023): Llama with a sliding window, in the older ones. */
import { sameWindow } from "./decoder-config.js";
import { decoderFamily } from "./decoder-family.js";
import type { ModelFamily } from "./model.js";

export const mistral: ModelFamily = decoderFamily("MistralForCausalLM", (config) => {
  return { slidingWindows: sameWindow(config) };
});
