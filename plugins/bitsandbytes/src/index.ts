/** `@shardloom/bitsandbytes`: bitsandbytes' NF4, FP4 and LLM.int8 weights in shardloom. Wiring only. */
import type { Plugin } from "shardloom/plugin";
import { checkpointQuantizer } from "./checkpoint-quantizer.js";
import { bitsandbytes, METHOD } from "./config.js";

export { checkpointQuantizer } from "./checkpoint-quantizer.js";
export { CODEBOOKS, DYNAMIC_MAP, type FourBitType } from "./codebooks.js";
export { bitsandbytes, SKIP_LIST_WARNING } from "./config.js";
export { expandAbsmax, type NestedAbsmax, quantizeAbsmax } from "./double-quant.js";
export {
  formatQuantState,
  NESTED_BLOCK,
  type NestedState,
  type OriginalDType,
  type QuantState,
} from "./quant-state.js";
export { blockCount, decode, encode, findAbsmax, packedBytes, type QuantizedRange } from "./quantize-4bit.js";
export { INT8_MULTIPLIER, quantizeRows } from "./quantize-int8.js";
export { skips } from "./skip-modules.js";

const checkpointQuantizers = (["nf4", "fp4", "int8"] as const).map(
  (type) => [type, checkpointQuantizer(type)] as const,
);

/** The plugin, as `--plugin @shardloom/bitsandbytes` finds it. */
export const plugin: Plugin = {
  name: "@shardloom/bitsandbytes",
  // The version this package was written for: a literal, or it would always equal the host's.
  apiVersion: 1,
  register(context) {
    context.registerQuantizationConfig(METHOD, bitsandbytes);
    for (const [format, quantizer] of checkpointQuantizers) context.registerCheckpointQuantizer(format, quantizer);
  },
};
