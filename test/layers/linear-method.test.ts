/** What a layer gives its linear method besides parameters: memory, and the reduction of a row-parallel layer. */
import assert from "node:assert/strict";
import type { Pass } from "../../src/collectives/collective.js";
import { driveInTurns } from "../../src/collectives/turns.js";
import type { Operand } from "../../src/core/operand.js";
import { f32Of } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { RowParallelLinear } from "../../src/layers/linear.js";
import { splitEvenly } from "../../src/parallel/partition.js";
import type { LinearMethod, LoadedWeights, QuantizationConfig } from "../../src/quantization/contract.js";
import { UnquantizedLinearMethod } from "../../src/quantization/unquantized.js";
import { contextOf, load, tensorOf } from "./layer-fixture.js";

/** Sums what the ranks computed through memory of its own, and adds the bias afterwards. */
class ReducingMethod extends UnquantizedLinearMethod implements LinearMethod {
  #sums: Operand | undefined;

  override processWeightsAfterLoading(weights: LoadedWeights): void {
    super.processWeightsAfterLoading(weights);
    const tensor = weights.allocate("sums", "f32", [2, 3]);
    assert.equal(tensor.name, "o_proj.sums");
    assert.ok(f32Of(tensor).every((value) => value === 0));
    this.#sums = weights.kernels.bind(tensor);
  }

  *applyReduced(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): Pass {
    const sums = this.#sums ?? assert.fail();
    this.apply(kernels, sums, x, null, rows);
    yield { kind: "allReduce", data: sums, count: 3 * rows };
    const biases = bias === null ? [0, 0, 0] : [...f32Of(bias.tensor)];
    f32Of(out.tensor).set(f32Of(sums.tensor).map((value, i) => value + (biases[i % 3] ?? 0)));
  }
}

const quantization: QuantizationConfig = { name: "reducing", linearMethod: () => new ReducingMethod() };

function rankOf(rank: number, worldSize: number): { pass: Pass; out: Operand } {
  const context = contextOf(rank, worldSize, quantization);
  const split = splitEvenly(4, worldSize, "inputs");
  const layer = new RowParallelLinear(context, { prefix: "o_proj", inputSize: 4, outputSize: 3, split, bias: true });
  load(
    context,
    tensorOf("o_proj.weight", [3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    tensorOf("o_proj.bias", [3], [100, 200, 300]),
  );
  context.processWeightsAfterLoading();
  const own = 4 / worldSize;
  const x = context.kernels.bind(context.allocate("x", "f32", [2, own]));
  f32Of(x.tensor).fill(1);
  const out = context.kernels.bind(context.allocate("out", "f32", [2, 3]));
  return { pass: layer.forward(out, x, 2), out };
}

describe("a linear method that sums over ranks itself", () => {
  it("has the bias on every rank, and what it leaves is the result on every rank: added once", () => {
    for (const worldSize of [1, 2, 4]) {
      const ranks = Array.from({ length: worldSize }, (_, rank) => rankOf(rank, worldSize));
      driveInTurns(ranks.map(({ pass }) => pass));
      for (const { out } of ranks) assert.deepEqual([...f32Of(out.tensor)], [110, 226, 342, 110, 226, 342]);
    }
  });
});
