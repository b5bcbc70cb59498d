/** The two ends of a model: the vocabulary is split, no rank stores padding, and so none can be found or sampled. */
import assert from "node:assert/strict";
import { driveInTurns } from "../../src/collectives/turns.js";
import { ArenaAllocator } from "../../src/core/arena.js";
import { ShardloomError } from "../../src/core/errors.js";
import { f32Of, i32Of } from "../../src/core/tensor.js";
import { ParallelLMHead, VocabParallelEmbedding } from "../../src/layers/embedding.js";
import type { LayerContext } from "../../src/layers/layer-context.js";
import { ColumnParallelLinear } from "../../src/layers/linear.js";
import { rangeSize, splitVocabulary } from "../../src/parallel/partition.js";
import type { LinearMethod, QuantizationConfig } from "../../src/quantization/contract.js";
import { UnquantizedLinearMethod } from "../../src/quantization/unquantized.js";
import { contextOf, labelled, load, parameterOf, rowLabels, rowsOf, tensorOf } from "./layer-fixture.js";

const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

function optionsOf(prefix: string, vocabularySize: number, hiddenSize: number, worldSize: number) {
  return { prefix, vocabularySize, hiddenSize, vocabulary: splitVocabulary(vocabularySize, worldSize) };
}

/** An f32 operand of the given values. */
function operandOf({ kernels }: LayerContext, rows: number, columns: number, values: readonly number[] = []) {
  const tensor = new ArenaAllocator("activations", 4096).allocate("x", "f32", [rows, columns]);
  f32Of(tensor).set(values);
  return { operand: kernels.bind(tensor), values: f32Of(tensor) };
}

function idsOf({ kernels }: LayerContext, ids: readonly number[]) {
  const tensor = new ArenaAllocator("ids", 4096).allocate("ids", "i32", [ids.length]);
  i32Of(tensor).set(ids);
  return kernels.bind(tensor);
}

describe("vocabulary-parallel embedding", () => {
  it("GPT-2's 50257 ids on 2 ranks: rank 1 stores its 25105 rows and none of upstream's 47 padding rows", () => {
    const ids = [0, 25151, 25152, 50256];
    const outputs: number[][] = [];
    const finish: (() => void)[] = [];
    const passes = [0, 1].map((rank) => {
      const context = contextOf(rank, 2);
      const embedding = new VocabParallelEmbedding(context, optionsOf("embed", 50257, 1, 2));
      load(
        context,
        tensorOf(
          "embed.weight",
          [50257, 1],
          Array.from({ length: 50257 }, (_, id) => id + 1),
        ),
      );
      context.processWeightsAfterLoading();
      assert.deepEqual(parameterOf(context, "embed.weight").tensor.shape, [[25152, 25105][rank], 1]);
      const out = operandOf(context, ids.length, 1);
      finish.push(() => outputs.push([...out.values]));
      return embedding.forward(out.operand, idsOf(context, ids), ids.length);
    });
    driveInTurns(passes);
    for (const each of finish) each();
    // Whose id it is not contributes zeros, also for an id that would lie in its padding.
    assert.deepEqual(outputs, [
      [1, 25152, 25153, 50257],
      [1, 25152, 25153, 50257],
    ]);
  });

  it("takes a weight of exactly the vocabulary's rows: neither one less nor padded on disk", () => {
    for (const rows of [1009, 1024]) {
      const context = contextOf(1, 2);
      new VocabParallelEmbedding(context, optionsOf("embed", 1010, 2, 2));
      assert.throws(() => load(context, labelled("embed.weight", rows, 2)), code("SHAPE_MISMATCH"), `${rows} rows`);
    }
  });

  it("packed along its output dimension it is cut where that is exact, and refused where it is not", () => {
    const packed = (rows: number): QuantizationConfig => {
      const method: LinearMethod = {
        createWeights: (creation) =>
          creation.addParameter({
            name: "weight",
            dtype: "f32",
            shape: [rows / 2, 1],
            outputDim: 0,
            inputDim: 1,
            packed: { dim: 0, factor: 2 },
          }),
        processWeightsAfterLoading() {},
        apply() {},
        executionWeights: () => [],
      };
      return { name: "packed", linearMethod: () => method };
    };
    const even = contextOf(1, 2, packed(498));
    new VocabParallelEmbedding(even, optionsOf("embed", 1010, 1, 2));
    load(even, labelled("embed.weight", 505, 1));
    const labels = rowLabels(parameterOf(even, "embed.weight"));
    assert.deepEqual([labels[0], labels.at(-1), labels.length], [256, 504, 249]);
    const odd = contextOf(1, 2, packed(498));
    new VocabParallelEmbedding(odd, optionsOf("embed", 1009, 1, 2));
    assert.throws(() => load(odd, labelled("embed.weight", 505, 1)), code("INEXACT_PACKING"));
  });

  it("of a format that cannot look rows up is refused by name, when it is first used", () => {
    const method = new UnquantizedLinearMethod();
    const headless: LinearMethod = {
      createWeights: (creation, layer) => method.createWeights(creation, layer),
      processWeightsAfterLoading() {},
      apply() {},
      executionWeights: () => [],
    };
    const context = contextOf(0, 1, { name: "headless", linearMethod: () => headless });
    const embedding = new VocabParallelEmbedding(context, optionsOf("embed", 4, 1, 1));
    const out = operandOf(context, 1, 1).operand;
    assert.throws(
      () => embedding.forward(out, idsOf(context, [0]), 1).next(),
      (error: unknown) => code("INVALID_LINEAR_METHOD")(error) && /embed.*headless/.test(String(error)),
    );
  });
});

describe("vocabulary-parallel head", () => {
  it("never answers with padding, also when all real logits are negative", () => {
    const worldSize = 3;
    const vocabularySize = 130;
    const candidates = [0, 1, 2].map((rank) => {
      const context = contextOf(rank, worldSize);
      const options = optionsOf("lm_head", vocabularySize, 1, worldSize);
      const head = new ParallelLMHead(context, options);
      const weights = Array.from({ length: vocabularySize }, (_, id) => -1 - Math.abs(id - 129));
      load(context, tensorOf("lm_head.weight", [vocabularySize, 1], weights));
      context.processWeightsAfterLoading();
      const ids = options.vocabulary[rank] ?? assert.fail();
      const logits = operandOf(context, 1, rangeSize(ids));
      head.computeLogits(logits.operand, operandOf(context, 1, 1, [2]).operand, 1);
      assert.ok(logits.values.every((logit) => logit < 0));
      const best = operandOf(context, 1, 1);
      const bestId = idsOf(context, [-1]);
      context.kernels.argmax(best.operand, bestId, logits.operand, 1, rangeSize(ids), ids.start);
      return { value: best.values[0] ?? 0, id: i32Of(bestId.tensor)[0] };
    });
    assert.deepEqual(candidates, [
      { value: -134, id: 63 },
      { value: -6, id: 127 },
      { value: -2, id: 129 },
    ]);
  });

  it("has a bias of its own ids, added to its logits", () => {
    const context = contextOf(1, 2);
    const head = new ParallelLMHead(context, { ...optionsOf("lm_head", 66, 1, 2), bias: true });
    const weight = Array.from({ length: 66 }, (_, id) => id);
    load(context, tensorOf("lm_head.weight", [66, 1], weight), tensorOf("lm_head.bias", [66], weight));
    context.processWeightsAfterLoading();
    const own = splitVocabulary(66, 2)[1] ?? assert.fail();
    const logits = operandOf(context, 1, rangeSize(own));
    head.computeLogits(logits.operand, operandOf(context, 1, 1, [10]).operand, 1);
    assert.deepEqual(
      [...logits.values],
      weight.slice(own.start).map((id) => 11 * id),
    );
  });

  it("tied to the embedding, computes with the embedding's rows", () => {
    const context = contextOf(1, 2);
    const embedding = new VocabParallelEmbedding(context, optionsOf("embed", 128, 1, 2));
    load(context, labelled("embed.weight", 128, 1));
    context.processWeightsAfterLoading();
    const logits = operandOf(context, 1, 64);
    embedding.computeLogits(logits.operand, operandOf(context, 1, 1, [0.001]).operand, 1);
    assert.deepEqual([Math.round(logits.values[0] ?? 0), Math.round(logits.values[63] ?? 0)], [64, 127]);
  });
});

describe("what makes the logits", () => {
  it("is a head by name of its role, so that a quantization format may treat it apart: an embedding only where it is tied", () => {
    const context = contextOf(0, 1);
    const options = optionsOf("X", 8, 4, 1);
    new ParallelLMHead(context, options);
    new VocabParallelEmbedding(context, { ...options, isHead: true });
    new VocabParallelEmbedding(context, options);
    new ColumnParallelLinear(context, { prefix: "X", inputSize: 4, outputSize: 8, split: options.vocabulary });
    assert.deepEqual(
      context.linears.map(({ layer }) => layer.isHead),
      [true, true, false, false],
    );
  });
});

describe("a split that gives every rank everything", () => {
  it("makes a column layer whole on every rank, without any collective", () => {
    for (const rank of [0, 1, 2, 3]) {
      const context = contextOf(rank, 4);
      const split = Array.from({ length: 4 }, () => ({ start: 0, end: 3 }));
      const layer = new ColumnParallelLinear(context, { prefix: "up", inputSize: 2, outputSize: 3, split });
      load(context, tensorOf("up.weight", [3, 2], [1, 2, 3, 4, 5, 6]));
      context.processWeightsAfterLoading();
      assert.deepEqual(rowsOf(parameterOf(context, "up.weight")).flat(), [1, 2, 3, 4, 5, 6]);
      const out = operandOf(context, 1, 3);
      layer.forward(out.operand, operandOf(context, 1, 2, [1, 1]).operand, 1);
      assert.deepEqual([...out.values], [3, 7, 11]);
    }
  });
});
