/**
 * Phi 3 and 3.5 mini and their like (Abdin et al. 2024): Llama whose query, key and value projections are one tensor on
 * disk, and so are gate and up. The layers take such tensors under the fused name; nothing is to be said here.
 */
import { sameWindow } from "./decoder-config.js";
import { decoderFamily } from "./decoder-family.js";
import type { ModelFamily } from "./model.js";

export const phi3: ModelFamily = decoderFamily("Phi3ForCausalLM", (config) => {
  config.require("partial_rotary_factor", 1);
  return { slidingWindows: sameWindow(config) };
});
