import { invariant } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import type { Kernels, LinearWeight } from "../kernels/kernels.js";
import { rangeSize } from "../parallel/partition.js";
import type {
  ExecutionWeight,
  LinearLayer,
  LinearMethod,
  LoadedWeights,
  QuantizationConfig,
  WeightCreation,
} from "./contract.js";

/** Weights as floating-point numbers, `[outputs, inputs]` of this rank, in the model's dtype. */
export class UnquantizedLinearMethod implements LinearMethod {
  readonly recordable: boolean = true;
  #weight: LinearWeight | undefined;

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    creation.addParameter({
      name: "weight",
      dtype: layer.dtype,
      shape: [layer.outputSizePerPartition, rangeSize(layer.inputs)],
      outputDim: 0,
      inputDim: 1,
    });
  }

  processWeightsAfterLoading(weights: LoadedWeights): void {
    const { kernels } = weights;
    this.#weight = kernels.prepareLinear({ format: "dense", matrix: kernels.bind(weights.tensor("weight")) });
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    invariant(this.#weight !== undefined, "a linear layer was used before its weights were processed");
    kernels.linear(out, x, this.#weight, bias, rows);
  }

  embed(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    invariant(this.#weight !== undefined, "an embedding was used before its weights were processed");
    kernels.embedding(out, ids, this.#weight, rows, firstId);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weight === undefined ? [] : [{ firstRow: 0, weight: this.#weight }];
  }
}

/** The config of a model without quantization. */
export const unquantized: QuantizationConfig = {
  name: "unquantized",
  linearMethod: () => new UnquantizedLinearMethod(),
};
