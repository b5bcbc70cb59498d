/** `@shardloom/gguf`: loads .gguf model files into shardloom, quantized weights as they are. Wiring only. */
import type { Plugin } from "shardloom/plugin";
import { createGgufLoader } from "./loader.js";
import { METHOD } from "./method.js";
import { ggufQuantization } from "./quantization.js";

export { createGgufLoader } from "./loader.js";
export { ggufQuantization } from "./quantization.js";

const loader = createGgufLoader();

/** The plugin, as `--plugin @shardloom/gguf` finds it. */
export const plugin: Plugin = {
  name: "@shardloom/gguf",
  // The version this package was written for: a literal, or it would always equal the host's.
  apiVersion: 1,
  register(context) {
    context.registerModelLoader(loader);
    context.registerQuantizationConfig(METHOD, ggufQuantization);
  },
};
