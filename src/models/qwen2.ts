/** Qwen 2 and 2.5 (Qwen team 2024): Llama with biases on the query, key and value projections. */
import { windowsOfSomeLayers } from "./decoder-config.js";
import { decoderFamily } from "./decoder-family.js";
import type { ModelFamily } from "./model.js";

export const qwen2: ModelFamily = decoderFamily("Qwen2ForCausalLM", (config) => {
  return { qkvBias: true, slidingWindows: windowsOfSomeLayers(config) };
});
