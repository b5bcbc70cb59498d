/** The kit for tests of quantization formats: it finds the faults that such formats have had. */
import assert from "node:assert/strict";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { ColumnParallelLinear, RowParallelLinear } from "../../src/layers/linear.js";
import { splitEvenly } from "../../src/parallel/partition.js";
import type { LinearLayer, QuantizationConfig, WeightCreation } from "../../src/quantization/contract.js";
import { UnquantizedLinearMethod } from "../../src/quantization/unquantized.js";
import { checkpointOf, compareShard, loadLayers } from "../../src/testing/layers.js";
import { labelled } from "../layers/layer-fixture.js";

const weight = labelled("X.weight", 4, 6);
const whole = Float32Array.from({ length: 24 }, (_, i) => Math.floor(i / 6) * 1000 + (i % 6));

/** Every rank loads shard 0, as a loader does that reads an optional rank with a default. */
class RankBlind extends UnquantizedLinearMethod {
  override createWeights(creation: WeightCreation, layer: LinearLayer): void {
    super.createWeights({ addParameter: (spec) => creation.addParameter({ ...spec, isSharded: true }) }, layer);
  }
}

function columnShards(worldSize: number, quantization: QuantizationConfig, source: (rank: number) => CheckpointTensor) {
  return Array.from({ length: worldSize }, (_, rank) => {
    const checkpoint = checkpointOf([source(rank)]);
    const { linears } = loadLayers({ rank, worldSize, checkpoint, quantization }, (context) => {
      const split = splitEvenly(4, worldSize, "rows");
      return new ColumnParallelLinear(context, { prefix: "X", inputSize: 6, outputSize: 4, split });
    });
    return compareShard(linears[0] ?? assert.fail(), () => whole);
  });
}

const plain: QuantizationConfig = { name: "plain", linearMethod: () => null };
const blind: QuantizationConfig = { name: "blind", linearMethod: () => new RankBlind() };

describe("loading layers without a model", () => {
  it("finds no fault in shardloom's own weights, by rows and by columns", () => {
    assert.deepEqual(
      columnShards(2, plain, () => weight),
      [null, null],
    );
    for (const rank of [0, 1, 2]) {
      const { linears } = loadLayers({ rank, worldSize: 3, checkpoint: checkpointOf([weight]) }, (context) => {
        const split = splitEvenly(6, 3, "inputs");
        return new RowParallelLinear(context, { prefix: "X", inputSize: 6, outputSize: 4, split });
      });
      assert.equal(
        compareShard(linears[0] ?? assert.fail(), () => whole),
        null,
      );
    }
  });

  it("a method whose loader ignores the rank passes alone and fails at two ranks, at the element that is wrong", () => {
    assert.deepEqual(
      columnShards(1, blind, () => weight),
      [null],
    );
    assert.deepEqual(
      columnShards(2, blind, () => labelled("X.weight", 2, 6)),
      [null, { prefix: "X", rank: 1, row: 2, column: 0, expected: 2000, received: 0 }],
    );
  });

  it("demands what a model demands: a weight that is missing is an error", () => {
    assert.throws(() => columnShards(1, plain, () => labelled("Y.weight", 4, 6)), { code: "UNEXPECTED_TENSOR" });
  });

  it("weights that leave rows out are found", () => {
    const half = Object.assign(new UnquantizedLinearMethod(), { executionWeights: () => [] });
    const [difference] = columnShards(1, { name: "half", linearMethod: () => half }, () => weight);
    assert.deepEqual(difference, { prefix: "X", rank: 0, row: 0, column: 0, expected: 4, received: 0 });
  });
});
