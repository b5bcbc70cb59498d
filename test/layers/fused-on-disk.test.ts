/** Loaded weights that hold several matrices of a layer, with every kind of storage: each rank gets its rows, once. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { ShardloomError } from "../../src/core/errors.js";
import { MergedColumnParallelLinear, QKVParallelLinear } from "../../src/layers/linear.js";
import type { Parameter } from "../../src/layers/parameter.js";
import { rangeSize, splitEvenly, splitHeads, splitUnits } from "../../src/parallel/partition.js";
import type {
  LinearLayer,
  LinearMethod,
  ParameterSpec,
  QuantizationConfig,
  ShardId,
} from "../../src/quantization/contract.js";
import { contextOf, labelled, load, parameterOf, rowLabels, rowsOf, tensorOf } from "./layer-fixture.js";

const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

const interval = (start: number, end: number): number[] => Array.from({ length: end - start }, (_, i) => start + i);

/** A config whose layers have the given parameters. */
function storing(specs: (layer: LinearLayer) => readonly ParameterSpec[]): QuantizationConfig {
  const method: LinearMethod = {
    createWeights: (creation, layer) => {
      for (const spec of specs(layer)) creation.addParameter(spec);
    },
    processWeightsAfterLoading() {},
    apply: () => assert.fail("never applied"),
    executionWeights: () => [],
  };
  return { name: "test", linearMethod: () => method };
}

const scalarSlots = storing(({ parts }) => [
  { name: "scale", dtype: "f32", shape: [parts.length], outputDim: null, inputDim: null, scalarSlots: true },
]);

/** A merged layer of one column, with rank `rank`'s share of parts of the given sizes. */
function merged(rank: number, worldSize: number, sizes: readonly number[], config?: QuantizationConfig) {
  const context = contextOf(rank, worldSize, config);
  const parts = sizes.map((outputSize, i) => {
    return { prefix: `part${i}`, outputSize, split: splitUnits(outputSize, 1, worldSize, "rows") };
  });
  return { context, layer: new MergedColumnParallelLinear(context, { prefix: "fused", inputSize: 1, parts }) };
}

interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly valueHeadSize?: number;
  readonly fusedLayout?: "concatenated" | "interleaved";
  readonly bias?: boolean;
}

function qkv(rank: number, worldSize: number, heads: Heads, config?: QuantizationConfig) {
  const context = contextOf(rank, worldSize, config);
  const { heads: totalHeads, kvHeads: totalKvHeads, ...options } = heads;
  const layer = new QKVParallelLinear(context, {
    prefix: "qkv",
    names: { q: "q", k: "k", v: "v" },
    inputSize: 1,
    totalHeads,
    totalKvHeads,
    heads: splitHeads(totalHeads, totalKvHeads, worldSize),
    ...options,
  });
  return { context, layer };
}

/** Where a fused tensor holds row `row` of a part: counted by hand, group by group. */
function rowInFused({ heads, kvHeads, headSize, valueHeadSize = headSize, fusedLayout }: Heads) {
  const sizes = { q: heads * headSize, k: kvHeads * headSize, v: kvHeads * valueHeadSize };
  const groups = fusedLayout === "interleaved" ? kvHeads : 1;
  const shares = [sizes.q / groups, sizes.k / groups, sizes.v / groups];
  const stride = shares.reduce((sum, share) => sum + share, 0);
  return (shardId: ShardId | null, row: number): number => {
    const index = ["q", "k", "v"].indexOf(String(shardId));
    const share = shares[index] ?? Number.NaN;
    const before = shares.slice(0, index).reduce((sum, each) => sum + each, 0);
    return Math.floor(row / share) * stride + before + (row % share);
  };
}

describe("tensors fused on disk", () => {
  it("three of four parts by a tuple and the last by its id: the same as four single loads", () => {
    const sizes = [6, 4, 2, 8];
    for (const rank of [0, 1]) {
      const single = merged(rank, 2, sizes);
      const tuple = merged(rank, 2, sizes);
      const weights = [single, tuple].map(({ context }) => parameterOf(context, "fused.weight"));
      const [singleWeight, tupleWeight] = weights;
      assert.ok(singleWeight !== undefined && tupleWeight !== undefined);
      let first = 0;
      sizes.forEach((size, id) => {
        single.layer.weightLoader(singleWeight, tensorOf(`part${id}`, [size, 1], interval(first, first + size)), id);
        first += size;
      });
      tuple.layer.weightLoader(tupleWeight, tensorOf("first three", [12, 1], interval(0, 12)), [0, 1, 2]);
      tuple.layer.weightLoader(tupleWeight, tensorOf("part3", [8, 1], interval(12, 20)), 3);
      assert.deepEqual(tupleWeight.missing(), []);
      assert.deepEqual(rowsOf(tupleWeight), rowsOf(singleWeight));
    }
  });

  it("a tuple's scalar goes into the slots of its ids, and into no other", () => {
    const { context, layer } = merged(0, 2, [4, 4, 4], scalarSlots);
    const scale = parameterOf(context, "fused.scale");
    layer.weightLoader(scale, tensorOf("scale of two", [], [3]), [0, 1]);
    assert.deepEqual(scale.missing(), [{ offset: 2, size: 1 }]);
    layer.weightLoader(scale, tensorOf("scale of one", [1], [5]), 2);
    assert.deepEqual(rowsOf(scale), [[3], [3], [5]]);
    assert.throws(() => layer.weightLoader(scale, tensorOf("again", [], [7]), 1), code("DUPLICATE_WEIGHT"));
  });

  it("every rank has all scalars of a QKV layer, whichever heads it has", () => {
    for (const rank of [0, 1, 2, 3]) {
      const { context } = qkv(rank, 4, { heads: 4, kvHeads: 2, headSize: 2 }, scalarSlots);
      load(context, tensorOf("v.scale", [], [3]), tensorOf("q.scale", [1], [1]), tensorOf("k.scale", [], [2]));
      assert.deepEqual(rowsOf(parameterOf(context, "qkv.scale")), [[1], [2], [3]]);
    }
  });

  it("heads that no even plan could split, 3 KV heads on 2 ranks and 2 on 3, load every row a rank's heads need", () => {
    // With an even plan only: an error each, as for any size.
    assert.throws(() => splitEvenly(3, 2, "KV heads"), code("UNEVEN_SPLIT"));
    assert.throws(() => splitEvenly(2, 3, "KV heads"), code("UNEVEN_SPLIT"));
    const labelsOf = (rank: number, worldSize: number, heads: Heads): number[] => {
      const { context } = qkv(rank, worldSize, heads);
      load(context, labelled("qkv.weight", (heads.heads + 2 * heads.kvHeads) * heads.headSize, 1));
      return rowLabels(parameterOf(context, "qkv.weight"));
    };
    const three = { heads: 3, kvHeads: 3, headSize: 1 };
    assert.deepEqual(labelsOf(0, 2, three), [0, 1, 3, 4, 6, 7]);
    assert.deepEqual(labelsOf(1, 2, three), [2, 5, 8]);
    const two = { heads: 6, kvHeads: 2, headSize: 1 };
    assert.deepEqual(labelsOf(0, 3, two), [0, 1, 6, 8]);
    assert.deepEqual(labelsOf(1, 3, two), [2, 3, 6, 7, 8, 9]);
    assert.deepEqual(labelsOf(2, 3, two), [4, 5, 7, 9]);
  });
});

describe("QKV interleaved by KV group", () => {
  const heads: Heads = { heads: 6, kvHeads: 3, headSize: 2, valueHeadSize: 3, fusedLayout: "interleaved", bias: true };
  const inFused = rowInFused(heads);
  const total = 6 * 2 + 3 * 2 + 3 * 3;

  it("gives the rows and biases that separate q, k and v give: 3 groups on 1, 2, 3, 4 and 6 ranks", () => {
    assert.deepEqual(
      interval(0, 5).map((row) => inFused("q", row)),
      [0, 1, 2, 3, 9],
      "two query heads, a key, a value, and the next group",
    );
    const tensors = (["q", "k", "v"] as const).flatMap((id) => {
      const size = { q: 12, k: 6, v: 9 }[id];
      const labels = interval(0, size).map((row) => inFused(id, row));
      return [tensorOf(`${id}.weight`, [size, 1], labels), tensorOf(`${id}.bias`, [size], labels)];
    });
    for (const worldSize of [1, 2, 3, 4, 6]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const separate = qkv(rank, worldSize, heads).context;
        load(separate, ...tensors);
        const fused = qkv(rank, worldSize, heads).context;
        load(
          fused,
          tensorOf("qkv.bias", [total], interval(0, total)),
          tensorOf("qkv.weight", [total, 1], interval(0, total)),
        );
        for (const name of ["qkv.weight", "qkv.bias"]) {
          const parameter = parameterOf(fused, name);
          assert.deepEqual(parameter.missing(), []);
          assert.deepEqual(rowsOf(parameter), rowsOf(parameterOf(separate, name)), `${name}, ${rank} of ${worldSize}`);
        }
      }
    }
  });

  it("refuses a tensor of another number of rows, and blocks that two pieces would share", () => {
    const { context } = qkv(0, 2, heads);
    assert.throws(() => load(context, labelled("qkv.weight", total + 1, 1)), code("SHAPE_MISMATCH"));
    const blocks = storing(() => [
      {
        name: "scale",
        dtype: "f32",
        shape: [9, 1],
        outputDim: 0,
        inputDim: 1,
        blockScale: { outputs: 2, inputs: 1 },
      },
    ]);
    const shared = qkv(0, 2, { ...heads, valueHeadSize: 2 }, blocks).context;
    load(shared, labelled("qkv.scale", 12, 1));
    assert.deepEqual(rowLabels(parameterOf(shared, "qkv.scale")).slice(0, 4), [0, 1, 4, 5]);
    assert.throws(
      () => load(qkv(0, 2, heads, blocks).context, labelled("qkv.scale", 14, 1)),
      code("INEXACT_PACKING"),
      "values of 3 rows, blocks of 2",
    );
  });
});

describe("block scales", () => {
  const blocksOf32 = (count: number): QuantizationConfig =>
    storing(() => [
      {
        name: "scale",
        dtype: "f32",
        shape: [count, 1],
        outputDim: 0,
        inputDim: 1,
        blockScale: { outputs: 32, inputs: 1 },
      },
    ]);

  it("of a fused tensor lie on one grid: a part that starts inside a block takes the block it shares with the part before", () => {
    // Rows of q, k and v: 0..95, 96..143, 144..191. v begins in the middle of block 4.
    const heads = { heads: 6, kvHeads: 3, headSize: 16 };
    const load2 = (rank: number, blocks: number): number[] => {
      const { context } = qkv(rank, 2, heads, blocksOf32(blocks));
      load(context, labelled("qkv.scale", 6, 1));
      const scale = parameterOf(context, "qkv.scale");
      assert.deepEqual(scale.missing(), []);
      return rowLabels(scale);
    };
    // Rank 0: q 0..63, k 96..127, v 144..175. Rank 1: q 64..95, k 128..143, v 176..191.
    assert.deepEqual(load2(0, 5), [0, 1, 3, 4, 5]);
    assert.deepEqual(load2(1, 3), [2, 4, 5]);
  });

  it("of separate tensors lie on a grid each", () => {
    const { context } = qkv(0, 2, { heads: 6, kvHeads: 3, headSize: 16 }, blocksOf32(4));
    load(context, labelled("q.scale", 3, 1), labelled("v.scale", 2, 1), labelled("k.scale", 2, 1));
    assert.deepEqual(rowLabels(parameterOf(context, "qkv.scale")), [0, 1, 0, 0]);
  });

  it("stored for the other grid are refused, not taken for others", () => {
    const heads = { heads: 6, kvHeads: 3, headSize: 16 };
    const { context } = qkv(0, 2, heads, blocksOf32(4));
    assert.throws(() => load(context, labelled("qkv.scale", 6, 1)), code("SHAPE_MISMATCH"));
    assert.throws(
      () => load(qkv(0, 2, heads, blocksOf32(5)).context, labelled("qkv.scale", 7, 1)),
      code("SHAPE_MISMATCH"),
      "one block too many on disk",
    );
  });
});

describe("property: fused on disk or not, whatever the heads, ranks, packing, blocks and parameters", () => {
  const groupings: readonly (readonly (readonly ShardId[])[])[] = [
    [["q", "k", "v"]],
    [["q"], ["k", "v"]],
    [["q", "k"], ["v"]],
    [["q"], ["k"], ["v"]],
  ];
  const cases = fc.record({
    kvHeads: fc.integer({ min: 1, max: 4 }),
    group: fc.integer({ min: 1, max: 4 }),
    headUnits: fc.integer({ min: 1, max: 3 }),
    valueUnits: fc.integer({ min: 1, max: 3 }),
    factor: fc.constantFrom(1, 2, 4),
    block: fc.integer({ min: 1, max: 20 }),
    worldSize: fc.integer({ min: 1, max: 8 }),
    source: fc.constantFrom("separate", "concatenated", "interleaved"),
    grouping: fc.constantFrom(...groupings),
  });

  /** Storage rows, by their labels, that a rank must have of some parts: of the loaded tensors' first column. */
  function expectedLabels(
    layer: LinearLayer,
    ids: readonly ShardId[],
    sourceRow: (id: ShardId | null, row: number) => number,
    unit: number,
  ): number[] {
    const parts = layer.parts.filter(({ shardId }) => shardId !== null && ids.includes(shardId));
    return parts.flatMap(({ shardId, rows }) => {
      const units = interval(rows.start, rows.end).map((row) => Math.floor(sourceRow(shardId, row) / unit));
      // Rows that follow each other in a unit share it.
      return units.filter((each, i) => each !== units[i - 1]);
    });
  }

  it("a rank's storage holds the rows of its heads, in order, and is complete", () => {
    fc.assert(
      fc.property(cases, ({ kvHeads, group, headUnits, valueUnits, factor, block, worldSize, source, grouping }) => {
        const heads: Heads = {
          heads: kvHeads * group,
          kvHeads,
          headSize: headUnits * factor,
          valueHeadSize: valueUnits * factor,
          fusedLayout: source === "interleaved" ? "interleaved" : "concatenated",
        };
        fc.pre(worldSize <= heads.heads);
        const sizes = {
          q: heads.heads * heads.headSize,
          k: kvHeads * heads.headSize,
          v: kvHeads * valueUnits * factor,
        };
        // Pieces that share a block are refused: that is another test.
        const scaled = source !== "interleaved" || Object.values(sizes).every((size) => (size / kvHeads) % block === 0);
        const sourceRow = source === "separate" ? (_: ShardId | null, row: number) => row : rowInFused(heads);
        const total = sizes.q + sizes.k + sizes.v;
        for (let rank = 0; rank < worldSize; rank++) {
          const config = storing((layer) =>
            grouping.flatMap((parts): ParameterSpec[] => {
              const packed = expectedLabels(layer, parts, sourceRow, factor).length;
              const blocks = expectedLabels(layer, parts, sourceRow, block).length;
              const common = { parts, dtype: "f32", outputDim: 0, inputDim: 1 } as const;
              const weight = { ...common, name: "weight", shape: [packed, 1], packed: { dim: 0, factor } };
              const blockScale = { outputs: block, inputs: 1 };
              return scaled ? [weight, { ...common, name: "scale", shape: [blocks, 1], blockScale }] : [weight];
            }),
          );
          const { context, layer } = qkv(rank, worldSize, heads, config);
          const tensors: [string, number][] =
            source === "separate" ? (["v", "q", "k"] as const).map((id) => [id, sizes[id]]) : [["qkv", total]];
          for (const [name, rows] of tensors) {
            load(context, labelled(`${name}.weight`, rows / factor, 1));
            if (scaled) load(context, labelled(`${name}.scale`, Math.ceil(rows / block), 1));
          }
          const expectLabels = (parameter: Parameter, unit: number): void => {
            assert.deepEqual(parameter.missing(), []);
            const ids = parameter.spec.parts ?? [];
            assert.deepEqual(rowLabels(parameter), expectedLabels(layer.layer, ids, sourceRow, unit), parameter.name);
          };
          for (const parameter of context.parameters) {
            expectLabels(parameter, parameter.spec.name === "weight" ? factor : block);
          }
          assert.equal(
            layer.layer.parts.reduce((sum, { rows }) => sum + rangeSize(rows), 0),
            layer.outputSizePerPartition,
          );
        }
      }),
      { numRuns: 300 },
    );
  });
});
