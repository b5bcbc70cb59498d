import assert from "node:assert/strict";
import {
  bytesOf,
  convertFloats,
  type ExecutionWeight,
  f32Of,
  type Kernels,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type LoadedWeights,
  type Operand,
  PLUGIN_API_VERSION,
  type Plugin,
  rangeSize,
  type WeightCreation,
} from "shardloom/plugin";
import { expectReassembles, expectSameLogits, SimulationAssertionError, simulate } from "shardloom/testing";

/** Eight bits a weight, and a scale for every row of the matrix that a rank holds. */
class RowInt8Method implements LinearMethod {
  #weight: LinearWeight | undefined;

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const shape = [layer.outputSizePerPartition, rangeSize(layer.inputs)];
    creation.addParameter({ name: "weight", dtype: layer.dtype, shape, outputDim: 0, inputDim: 1 });
  }

  processWeightsAfterLoading({ kernels, tensor, allocate }: LoadedWeights, layer: LinearLayer): void {
    const [rows, columns] = [layer.outputSizePerPartition, rangeSize(layer.inputs)];
    const values = new Float32Array(rows * columns);
    convertFloats(bytesOf(tensor("weight")), layer.dtype, new Uint8Array(values.buffer), "f32", layer.prefix);
    const codes = allocate("codes", "i8", [rows, columns]);
    const scales = allocate("scales", "f32", [rows]);
    for (let row = 0; row < rows; row++) {
      const weights = values.subarray(row * columns, (row + 1) * columns);
      const scale = weights.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) / 127;
      f32Of(scales)[row] = scale;
      bytesOf(codes).set(
        Int8Array.from(weights, (value) => Math.round(value / scale)),
        row * columns,
      );
    }
    const operands = { codes: kernels.bind(codes), scales: kernels.bind(scales), minimums: null };
    this.#weight = kernels.prepareLinear({ format: "int8", ...operands, blockSize: columns, multiplier: 1 });
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.#weight !== undefined) kernels.linear(out, x, this.#weight, bias, rows);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weight === undefined ? [] : [{ firstRow: 0, weight: this.#weight }];
  }
}

/** Quantizes the layers of these kinds while they are loaded. */
function rowInt8(kinds: readonly LinearLayer["kind"][]): Plugin {
  return {
    name: "row-int8",
    apiVersion: PLUGIN_API_VERSION,
    register: ({ registerQuantizationConfig }) =>
      registerQuantizationConfig("row-int8", {
        create: () => ({
          name: "row-int8",
          linearMethod: (layer) => (kinds.includes(layer.kind) ? new RowInt8Method() : null),
        }),
      }),
  };
}

const config = {
  architectures: ["LlamaForCausalLM"],
  hidden_act: "silu",
  hidden_size: 64,
  intermediate_size: 192,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  vocab_size: 300,
  torch_dtype: "bfloat16",
};
const options = { config, worldSize: 2, quantization: "row-int8" };

describe("the row-int8 plugin", () => {
  it("holds the same values on any number of ranks where ranks hold whole rows", async () => {
    const simulation = await simulate({ ...options, plugins: [rowInt8(["qkv", "merged"])] });
    await expectReassembles(simulation);
    expectSameLogits(simulation, await simulation.unsharded(), 1e-4);
    await simulation.close();
  });

  it("does not where a row is cut: each rank finds a scale of its own, and the weights depend on the number of ranks", async () => {
    const simulation = await simulate({ ...options, plugins: [rowInt8(["qkv", "merged", "row"])] });
    await assert.rejects(expectReassembles(simulation), (error: unknown) => {
      assert.ok(error instanceof SimulationAssertionError);
      assert.equal(error.details.layer, "model.layers.0.self_attn.o_proj");
      return /o_proj\.weight: rank \d, index \[\d+, \d+\]: expected .* but received/.test(error.message);
    });
    await simulation.close();
  });
});
