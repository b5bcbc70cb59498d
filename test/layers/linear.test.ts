import assert from "node:assert/strict";
import { driveInTurns } from "../../src/collectives/turns.js";
import { ArenaAllocator } from "../../src/core/arena.js";
import { CheckpointError, OptionError, ShardloomError } from "../../src/core/errors.js";
import { f32Of } from "../../src/core/tensor.js";
import {
  ColumnParallelLinear,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  ReplicatedLinear,
  RowParallelLinear,
} from "../../src/layers/linear.js";
import { splitEvenly, splitHeads, splitUnits } from "../../src/parallel/partition.js";
import type {
  LinearMethod,
  ParameterSpec,
  QuantizationConfig,
  ShardIndexQuery,
} from "../../src/quantization/contract.js";
import { contextOf, labelled, load, parameterOf, rowLabels, rowsOf, tensorOf } from "./layer-fixture.js";

const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

/** A config whose layers have one parameter of the given storage. */
function storing(spec: (rows: number, columns: number) => ParameterSpec): QuantizationConfig {
  const method: LinearMethod = {
    createWeights(creation, layer) {
      creation.addParameter(spec(layer.outputSizePerPartition, layer.inputs.end - layer.inputs.start));
    },
    processWeightsAfterLoading() {},
    apply() {
      throw new Error("never applied");
    },
    executionWeights: () => [],
  };
  return { name: "test", linearMethod: () => method };
}

function merged(
  rank: number,
  worldSize: number,
  sizes: readonly number[],
  inputSize: number,
  config?: QuantizationConfig,
) {
  const context = contextOf(rank, worldSize, config);
  const layer = new MergedColumnParallelLinear(context, {
    prefix: "mlp.gate_up_proj",
    inputSize,
    parts: sizes.map((outputSize, i) => ({
      prefix: `mlp.part${i}`,
      outputSize,
      split: splitEvenly(outputSize, worldSize, "output size"),
    })),
  });
  return { context, layer };
}

function qkv(
  rank: number,
  worldSize: number,
  heads: number,
  kvHeads: number,
  headSize: number,
  valueHeadSize = headSize,
  bias = false,
) {
  const context = contextOf(rank, worldSize);
  const layer = new QKVParallelLinear(context, {
    prefix: "attn.qkv_proj",
    names: { q: "attn.q_proj", k: "attn.k_proj", v: "attn.v_proj" },
    inputSize: 2,
    headSize,
    valueHeadSize,
    totalHeads: heads,
    totalKvHeads: kvHeads,
    heads: splitHeads(heads, kvHeads, worldSize),
    bias,
  });
  return { context, layer };
}

const interval = (start: number, end: number): number[] => Array.from({ length: end - start }, (_, i) => start + i);

describe("linear layers: weight loaders", () => {
  it("replicated: a scalar scale goes into a parameter of one, two values do not, and the error names both shapes", () => {
    const config = storing(() => ({ name: "scale", dtype: "f32", shape: [1], outputDim: null, inputDim: null }));
    const context = contextOf(0, 1, config);
    new ReplicatedLinear(context, { prefix: "gate", inputSize: 4, outputSize: 4 });
    assert.throws(
      () => load(context, tensorOf("gate.scale", [2], [1, 2])),
      (error: unknown) => code("SHAPE_MISMATCH")(error) && /\[1\].*\[2\]/.test(String(error)),
    );
    load(context, tensorOf("gate.scale", [], [7]));
    assert.deepEqual(rowsOf(parameterOf(context, "gate.scale")), [[7]]);
  });

  it("column: three ranks take two rows each of [6, 4], in order and without loss", () => {
    const rows = [0, 1, 2].flatMap((rank) => {
      const context = contextOf(rank, 3);
      new ColumnParallelLinear(context, { prefix: "up", inputSize: 4, outputSize: 6, split: splitEvenly(6, 3, "up") });
      load(context, labelled("up.weight", 6, 4));
      return rowsOf(parameterOf(context, "up.weight"));
    });
    assert.deepEqual(
      rows,
      interval(0, 6).map((r) => [0, 1, 2, 3].map((c) => r * 1000 + c)),
    );
  });

  it("column: a parameter without an output dimension is whole on every rank", () => {
    const config = storing(() => ({ name: "table", dtype: "f32", shape: [3, 1], outputDim: null, inputDim: null }));
    const context = contextOf(1, 2, config);
    new ColumnParallelLinear(context, { prefix: "up", inputSize: 4, outputSize: 6, split: splitEvenly(6, 2, "up") });
    load(context, labelled("up.table", 3, 1));
    assert.deepEqual(rowLabels(parameterOf(context, "up.table")), [0, 1, 2]);
  });

  it("column: a weight that is sharded already is not sliced again, and must have the local shape", () => {
    const config = storing((rows, columns) => ({
      name: "weight",
      dtype: "f32",
      shape: [rows, columns],
      outputDim: 0,
      inputDim: 1,
      isSharded: true,
    }));
    const context = contextOf(1, 2, config);
    new ColumnParallelLinear(context, { prefix: "up", inputSize: 4, outputSize: 6, split: splitEvenly(6, 2, "up") });
    assert.throws(() => load(context, labelled("up.weight", 6, 4)), code("SHAPE_MISMATCH"));
    load(context, labelled("up.weight", 3, 4));
    assert.deepEqual(rowLabels(parameterOf(context, "up.weight")), [0, 1, 2]);
  });

  it("column: a checkpoint with more rows than the layer is refused, not cut", () => {
    const context = contextOf(0, 2);
    new ColumnParallelLinear(context, { prefix: "up", inputSize: 4, outputSize: 6, split: splitEvenly(6, 2, "up") });
    assert.throws(() => load(context, labelled("up.weight", 8, 4)), code("SHAPE_MISMATCH"));
    assert.throws(() => load(context, labelled("up.weight", 6, 5)), code("SHAPE_MISMATCH"));
  });

  it("merged: parts land in their places whatever the order they come in", () => {
    const { context } = merged(1, 2, [8, 8], 1);
    load(context, labelled("mlp.part1.weight", 8, 1), labelled("mlp.part0.weight", 8, 1));
    assert.deepEqual(rowLabels(parameterOf(context, "mlp.gate_up_proj.weight")), [4, 5, 6, 7, 4, 5, 6, 7]);
  });

  it("merged: fused on disk gives the same bytes as separate gate and up", () => {
    for (const rank of [0, 1]) {
      const separate = merged(rank, 2, [8, 4], 3).context;
      const rows = (first: number, count: number) =>
        interval(first, first + count).flatMap((r) => [r * 1000, r * 1000 + 1, r * 1000 + 2]);
      load(
        separate,
        tensorOf("mlp.part0.weight", [8, 3], rows(0, 8)),
        tensorOf("mlp.part1.weight", [4, 3], rows(8, 4)),
      );
      const fused = merged(rank, 2, [8, 4], 3).context;
      load(fused, labelled("mlp.gate_up_proj.weight", 12, 3));
      const name = "mlp.gate_up_proj.weight";
      assert.deepEqual(rowsOf(parameterOf(fused, name)), rowsOf(parameterOf(separate, name)));
    }
  });

  it("merged: a tuple of ids fills those parts, counted from its own first id", () => {
    const { context, layer } = merged(1, 2, [2, 4, 2, 4], 1);
    const weight = parameterOf(context, "mlp.gate_up_proj.weight");
    layer.weightLoader(weight, labelled("some.fused", 6, 1), [1, 2]);
    assert.deepEqual(weight.missing(), [
      { offset: 0, size: 1 },
      { offset: 4, size: 2 },
    ]);
    layer.weightLoader(weight, labelled("part0", 2, 1), 0);
    layer.weightLoader(weight, labelled("part3", 4, 1), 3);
    assert.deepEqual(rowLabels(weight), [1, 2, 3, 5, 2, 3]);
  });

  it("merged: ids out of range and tuples that are not consecutive are errors", () => {
    const { context, layer } = merged(0, 1, [2, 2, 2], 1);
    const weight = parameterOf(context, "mlp.gate_up_proj.weight");
    for (const id of [3, -1, [0, 2], [2, 1], [], "q"] as const) {
      assert.throws(
        () => layer.weightLoader(weight, labelled("x", 2, 1), id),
        (error: unknown) => error instanceof OptionError && error.code === "INVALID_SHARD_ID",
        `id ${JSON.stringify(id)}`,
      );
    }
  });

  it("merged: per-tensor scales go to their slots", () => {
    const config = storing(() => ({
      name: "scale",
      dtype: "f32",
      shape: [2],
      outputDim: null,
      inputDim: null,
      scalarSlots: true,
    }));
    const { context } = merged(1, 2, [8, 8], 1, config);
    load(context, tensorOf("mlp.part1.scale", [], [5]), tensorOf("mlp.part0.scale", [1], [3]));
    assert.deepEqual(rowsOf(parameterOf(context, "mlp.gate_up_proj.scale")), [[3], [5]]);
  });

  it("merged: a fused scalar fills every slot", () => {
    const config = storing(() => ({
      name: "scale",
      dtype: "f32",
      shape: [2],
      outputDim: null,
      inputDim: null,
      scalarSlots: true,
    }));
    const { context } = merged(0, 2, [8, 8], 1, config);
    load(context, tensorOf("mlp.gate_up_proj.scale", [], [4]));
    assert.deepEqual(rowsOf(parameterOf(context, "mlp.gate_up_proj.scale")), [[4], [4]]);
  });

  it("block scales: a rank takes the blocks its rows touch, also when it starts inside one", () => {
    const blocks = [0, 1, 2, 3].map((rank) => {
      const count = Math.ceil(((rank + 1) * 96) / 128) - Math.floor((rank * 96) / 128);
      const config = storing(() => ({
        name: "scale",
        dtype: "f32",
        shape: [count, 1],
        outputDim: 0,
        inputDim: 1,
        blockScale: { outputs: 128, inputs: 128 },
      }));
      const context = contextOf(rank, 4, config);
      new ColumnParallelLinear(context, {
        prefix: "up",
        inputSize: 128,
        outputSize: 384,
        split: splitEvenly(384, 4, "up"),
      });
      load(context, labelled("up.scale", 3, 1));
      return rowLabels(parameterOf(context, "up.scale"));
    });
    assert.deepEqual(blocks, [[0], [0, 1], [1, 2], [2]]);
  });

  it("packing: 64 rows of factor 8 are 8 storage rows; a boundary inside a storage row is an error, not a floor", () => {
    const packed = (rows: number) =>
      storing(() => ({
        name: "weight",
        dtype: "f32",
        shape: [rows / 8, 2],
        outputDim: 0,
        inputDim: 1,
        packed: { dim: 0, factor: 8 },
      }));
    const good = contextOf(1, 2, packed(64));
    new ColumnParallelLinear(good, { prefix: "up", inputSize: 2, outputSize: 128, split: splitEvenly(128, 2, "up") });
    load(good, labelled("up.weight", 16, 2));
    assert.deepEqual(rowLabels(parameterOf(good, "up.weight")), interval(8, 16));
    const bad = contextOf(1, 2, packed(64));
    new ColumnParallelLinear(bad, { prefix: "up", inputSize: 2, outputSize: 120, split: splitEvenly(120, 2, "up") });
    assert.throws(() => load(bad, labelled("up.weight", 15, 2)), code("INEXACT_PACKING"));
  });

  it("qkv: Llama-3.2-1B at 2 ranks, rank 1 takes q 1024..2047, k and v 256..511", () => {
    const { context } = qkv(1, 2, 32, 8, 64);
    load(
      context,
      labelled("attn.q_proj.weight", 2048, 2),
      labelled("attn.k_proj.weight", 512, 2),
      labelled("attn.v_proj.weight", 512, 2),
    );
    const weight = parameterOf(context, "attn.qkv_proj.weight");
    assert.deepEqual(weight.tensor.shape, [1536, 2]);
    assert.deepEqual(rowLabels(weight), [...interval(1024, 2048), ...interval(256, 512), ...interval(256, 512)]);
  });

  it("qkv: Qwen2.5-1.5B at 4 ranks reads KV heads 0, 0, 1, 1, its biases alike, fused on disk or not", () => {
    for (const rank of [0, 1, 2, 3]) {
      const separate = qkv(rank, 4, 12, 2, 128, 128, true).context;
      const values = (first: number, count: number) => interval(first, first + count);
      for (const [name, first, count] of [
        ["q", 0, 1536],
        ["k", 1536, 256],
        ["v", 1792, 256],
      ] as const) {
        const rows = values(first, count);
        load(
          separate,
          tensorOf(
            `attn.${name}_proj.weight`,
            [count, 2],
            rows.flatMap((r) => [r * 1000, r * 1000 + 1]),
          ),
          tensorOf(`attn.${name}_proj.bias`, [count], rows),
        );
      }
      const kv = Math.floor(rank / 2) * 128;
      const expected = [
        ...interval(384 * rank, 384 * rank + 384),
        ...interval(1536 + kv, 1664 + kv),
        ...interval(1792 + kv, 1920 + kv),
      ];
      assert.deepEqual(rowLabels(parameterOf(separate, "attn.qkv_proj.weight")), expected);
      assert.deepEqual(rowsOf(parameterOf(separate, "attn.qkv_proj.bias")).flat(), expected);
      const fused = qkv(rank, 4, 12, 2, 128, 128, true).context;
      load(fused, labelled("attn.qkv_proj.weight", 2048, 2), tensorOf("attn.qkv_proj.bias", [2048], values(0, 2048)));
      assert.deepEqual(rowLabels(parameterOf(fused, "attn.qkv_proj.weight")), expected);
      assert.deepEqual(rowsOf(parameterOf(fused, "attn.qkv_proj.bias")).flat(), expected);
    }
  });

  it("qkv: values of another head size stand behind the keys: H 64, KV 4, d 192, dv 128 at 2 ranks", () => {
    const { context, layer } = qkv(1, 2, 64, 4, 192, 128);
    assert.deepEqual(
      layer.layer.parts.map(({ localOffset, rows }) => [localOffset, rows.end - rows.start]),
      [
        [0, 6144],
        [6144, 384],
        [6528, 256],
      ],
    );
    load(context, labelled("attn.qkv_proj.weight", 64 * 192 + 4 * 192 + 4 * 128, 2));
    assert.equal(parameterOf(context, "attn.qkv_proj.weight").missing().length, 0);
  });

  it("qkv: uneven heads, SmolLM2's 9 and 3 at 2 ranks, cover every row once", () => {
    const labels = [0, 1].map((rank) => {
      const { context } = qkv(rank, 2, 9, 3, 4);
      load(context, labelled("attn.qkv_proj.weight", 36 + 12 + 12, 2));
      return rowLabels(parameterOf(context, "attn.qkv_proj.weight"));
    });
    assert.deepEqual(labels[0], [...interval(0, 24), ...interval(36, 44), ...interval(48, 56)]);
    assert.deepEqual(labels[1], [...interval(24, 36), ...interval(44, 48), ...interval(56, 60)]);
  });

  it("a part that never came is a gap, a part that came twice an error that names both sources", () => {
    const { context } = qkv(0, 1, 2, 1, 4);
    load(context, labelled("attn.q_proj.weight", 8, 2), labelled("attn.k_proj.weight", 4, 2));
    assert.deepEqual(parameterOf(context, "attn.qkv_proj.weight").missing(), [{ offset: 12, size: 4 }]);
    assert.throws(
      () => load(context, labelled("attn.k_proj.weight", 4, 2)),
      (error: unknown) => code("DUPLICATE_WEIGHT")(error) && /k_proj.*k_proj/.test(String(error)),
    );
  });

  it("row: ranks take columns, their partial products sum to the whole, and the bias is added once", () => {
    const weight = Array.from({ length: 12 }, (_, i) => i - 5);
    const x = [1, -2, 3, 4];
    const bias = [0.5, -1, 2];
    const expected = [0, 1, 2].map(
      (n) => x.reduce((sum, value, k) => sum + value * (weight[n * 4 + k] ?? 0), 0) + (bias[n] ?? 0),
    );
    const outputs: Float32Array[] = [];
    const passes = [0, 1, 2].map((rank) => {
      const context = contextOf(rank, 3);
      const split = splitUnits(4, 1, 3, "inputs");
      const layer = new RowParallelLinear(context, { prefix: "down", inputSize: 4, outputSize: 3, split, bias: true });
      load(context, tensorOf("down.weight", [3, 4], weight), tensorOf("down.bias", [3], bias));
      context.processWeightsAfterLoading();
      const own = split[rank] ?? { start: 0, end: 0 };
      const memory = new ArenaAllocator("activations", 4096);
      const input = memory.allocate("x", "f32", [1, own.end - own.start]);
      f32Of(input).set(x.slice(own.start, own.end));
      const output = memory.allocate("out", "f32", [1, 3]);
      outputs.push(f32Of(output));
      return layer.forward(context.kernels.bind(output), context.kernels.bind(input), 1);
    });
    driveInTurns(passes);
    for (const output of outputs) assert.deepEqual([...output], expected);
  });

  it("a finite value that the parameter's dtype cannot hold is reported, not stored as infinity", () => {
    const config = storing(() => ({ name: "weight", dtype: "f16", shape: [1, 2], outputDim: 0, inputDim: 1 }));
    const context = contextOf(0, 1, config);
    new ColumnParallelLinear(context, { prefix: "up", inputSize: 2, outputSize: 1, split: splitEvenly(1, 1, "up") });
    assert.throws(() => load(context, tensorOf("up.weight", [1, 2], [1, 1e5], "bf16")), code("FLOAT_OVERFLOW"));
  });

  it("integers are not converted into floats", () => {
    const context = contextOf(0, 1);
    new ColumnParallelLinear(context, { prefix: "up", inputSize: 2, outputSize: 1, split: splitEvenly(1, 1, "up") });
    assert.throws(
      () => load(context, tensorOf("up.weight", [1, 2], [1, 2], "i32")),
      (error: unknown) => error instanceof CheckpointError && error.code === "DTYPE_MISMATCH",
    );
  });
});

describe("linear layers: the shard indexer", () => {
  /** Storage `[rows * columns / 2, 1]`, as 4-bit codes are packed, found through an indexer as bitsandbytes' is. */
  const packedConfig = (queries: ShardIndexQuery[]): QuantizationConfig =>
    storing((rows, columns) => ({
      name: "weight",
      dtype: "f32",
      shape: [(rows * columns) / 2, 1],
      outputDim: 0,
      inputDim: null,
      isSharded: true,
      shardIndexer: (query) => {
        queries.push(query);
        const offsets = query.originalOffsets();
        const total = offsets.get("total")?.size ?? 0;
        const part = offsets.get(String(query.shardId)) ?? { offset: 0, size: 0 };
        const scale = (value: number): number => (value * query.storageExtent) / total;
        return { offset: scale(part.offset), size: scale(part.size) };
      },
    }));

  it("gets the original offsets of a merged layer from whole matrices, the same map every time", () => {
    const queries: ShardIndexQuery[] = [];
    const { context } = merged(1, 2, [8, 8], 4, packedConfig(queries));
    load(context, labelled("mlp.part1.weight", 8, 1), labelled("mlp.part0.weight", 8, 1));
    assert.deepEqual(rowLabels(parameterOf(context, "mlp.gate_up_proj.weight")), [
      ...interval(0, 8),
      ...interval(0, 8),
    ]);
    assert.deepEqual(
      [...(queries[0]?.originalOffsets() ?? [])],
      [
        ["0", { offset: 0, size: 8 }],
        ["1", { offset: 8, size: 8 }],
        ["total", { offset: 0, size: 16 }],
      ],
    );
    assert.equal(queries[0]?.originalOffsets(), queries[1]?.originalOffsets());
  });

  it("cuts a fused loaded weight that is this rank's already, by the same arithmetic", () => {
    const queries: ShardIndexQuery[] = [];
    const { context } = merged(1, 2, [8, 4], 4, packedConfig(queries));
    load(context, labelled("mlp.gate_up_proj.weight", 12, 1));
    assert.deepEqual(rowLabels(parameterOf(context, "mlp.gate_up_proj.weight")), interval(0, 12));
    assert.deepEqual(
      queries.map(({ of, shardId }) => [of, shardId]),
      [
        ["destination", 0],
        ["source", 0],
        ["destination", 1],
        ["source", 1],
      ],
    );
  });

  it("may not point outside the storage", () => {
    const config = storing((rows, columns) => ({
      name: "weight",
      dtype: "f32",
      shape: [rows, columns],
      outputDim: 0,
      inputDim: 1,
      shardIndexer: ({ extent }) => ({ offset: extent.offset + 6, size: extent.size }),
    }));
    const { context } = merged(0, 1, [4, 4], 1, config);
    assert.throws(() => load(context, labelled("mlp.part0.weight", 16, 1)), code("INVALID_EXTENT"));
  });
});
