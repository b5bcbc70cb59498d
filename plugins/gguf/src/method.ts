/** Name of the quantization method that descriptions of models state and the plugin registers. */
export const METHOD = "gguf";
