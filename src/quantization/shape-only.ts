import type { LinearMethod, QuantizationConfig } from "./contract.js";
import { UnquantizedLinearMethod } from "./unquantized.js";

/**
 * A quantization format as layers get it where tensors have no bytes: its linear methods create their parameters, so that
 * partition and loading are the format's own, and there is nothing for them to prepare or to apply.
 */
export function shapeOnly(config: QuantizationConfig): QuantizationConfig {
  return {
    name: config.name,
    linearMethod: (layer) => withoutBytes(config.linearMethod(layer) ?? new UnquantizedLinearMethod()),
  };
}

function withoutBytes(method: LinearMethod): LinearMethod {
  return {
    createWeights: (creation, layer) => method.createWeights(creation, layer),
    processWeightsAfterLoading: nothing,
    apply: nothing,
    ...(method.embed === undefined ? {} : { embed: nothing }),
    executionWeights: () => [],
  };
}

function nothing(): void {}
