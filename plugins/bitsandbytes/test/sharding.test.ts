/** Shards of quantized weights, at any cut: each rank's values are its slice of the unsharded weight, to the bit. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { type Checkpoint, type CheckpointTensor, elementCount, ShardloomError } from "shardloom/plugin";
import { checkpointOf } from "shardloom/testing";
import { rowIndexer } from "../src/row-indexer.js";
import {
  dequantizeSlowly,
  floatsOfTensor,
  hasCode,
  inFlightConfig,
  memoryTensor,
  openFixture,
  openOracle,
  randomValues,
  type StoredOptions,
  storedConfig,
  storeFourBit,
  storeInt8,
  tensorOf,
  viewOf,
  withTensors,
} from "./fixture.js";
import {
  type Build,
  column,
  embedding,
  expectShards,
  formatsOf,
  type Heads,
  loadRanks,
  merged,
  qkv,
  replicated,
  row,
  scaleSplit,
  splitAt,
} from "./layer-fixture.js";

/** Loads one layer on all ranks from stored tensors and holds it to the slow oracle. Returns formats by rank. */
function expectStored(
  worldSize: number,
  tensors: readonly CheckpointTensor[],
  ...builds: Build[]
): readonly (readonly string[])[] {
  const ranks = loadRanks(worldSize, checkpointOf(tensors), storedConfig, ...builds);
  const wholes = new Map<string, Float32Array>();
  expectShards(ranks, ({ prefix }) => {
    const whole = wholes.get(prefix) ?? dequantizeSlowly(tensors, prefix);
    wholes.set(prefix, whole);
    return whole;
  });
  return ranks.map((linears) => linears.flatMap(formatsOf));
}

const store = (name: string, rows: number, columns: number, options: StoredOptions = {}): CheckpointTensor[] => {
  return storeFourBit(name, [rows, columns], randomValues(rows * columns, rows + 7 * columns), options);
};

const doubleQuant = true;
const even = (total: number, worldSize: number) =>
  splitAt(total, ...Array.from({ length: worldSize - 1 }, (_, i) => ((i + 1) * total) / worldSize));

describe("sharding 4-bit weights", () => {
  it("nested NF4 at Llama's ratios, 1 to 8 ranks, column and row", () => {
    const down = store("down", 64, 512, { doubleQuant });
    const up = store("up", 512, 64, { doubleQuant });
    for (const worldSize of [1, 2, 4, 8]) {
      const formats = expectStored(
        worldSize,
        [...down, ...up],
        column("up", 512, 64, even(512, worldSize)),
        row("down", 64, 512, even(512, worldSize)),
      );
      assert.ok(formats.flat().every((format) => format === "code4/64"));
    }
  });

  it("blocks that straddle rows, a shard that starts inside one: K 96, B 64, from an odd row on", () => {
    assert.deepEqual(expectStored(2, store("X", 7, 96), column("X", 7, 96, splitAt(7, 3))), [
      ["code4/32"],
      ["code4/32"],
    ]);
  });

  it("odd K: rows begin in low halves of bytes, so values are kept as f32", () => {
    const tensors = store("X", 9, 33, { doubleQuant });
    assert.deepEqual(
      expectStored(3, tensors, column("X", 9, 33, splitAt(9, 2, 5))).flat(),
      new Array(3).fill("dense f32"),
    );
    assert.deepEqual(expectStored(2, tensors, row("X", 9, 33, splitAt(33, 10))).flat(), new Array(2).fill("dense f32"));
  });

  it("row shards that start in the middle of a block in every row: K 4864 at 8 ranks, as Qwen2.5-0.5B's down_proj", () => {
    const formats = expectStored(8, store("X", 3, 4864), row("X", 3, 4864, even(4864, 8)));
    assert.deepEqual(formats.flat(), new Array(8).fill("code4/32"));
  });

  it("row shards whose phase changes from row to row: K 4304 at 2 ranks, cut where 16 divides and where only 8 does", () => {
    const tensors = store("X", 5, 4304);
    assert.deepEqual(expectStored(1, tensors, row("X", 5, 4304, splitAt(4304))).flat(), ["code4/16"]);
    assert.deepEqual(expectStored(2, tensors, row("X", 5, 4304, splitAt(4304, 2144))).flat(), ["code4/16", "code4/16"]);
    assert.deepEqual(expectStored(2, tensors, row("X", 5, 4304, splitAt(4304, 2152))).flat(), [
      "dense f32",
      "dense f32",
    ]);
  });

  it("a weight smaller than a block, and blocks that several ranks share", () => {
    expectStored(2, store("X", 2, 16), column("X", 2, 16, splitAt(2, 1)));
    expectStored(4, store("Y", 3, 64, { blockSize: 4096 }), row("Y", 3, 64, even(64, 4)));
    expectStored(3, store("Z", 3, 64, { blockSize: 256, doubleQuant }), column("Z", 3, 64, splitAt(3, 1, 2)));
  });

  it("nested absmax from inside a group of 256 on: SmolLM2's k_proj [192, 576] at 3 ranks", () => {
    expectStored(3, store("X", 192, 576, { doubleQuant }), column("X", 192, 576, even(192, 3)));
  });

  it("whole on every rank, or looked up by row", () => {
    expectStored(2, store("X", 5, 64), replicated("X", 5, 64));
    expectStored(2, store("X", 5, 64, { type: "fp4" }), embedding("X", 5, 64, splitAt(5, 3)));
  });

  it("QKV with KV heads on several ranks at once holds identical rows on them", () => {
    const heads: Heads = { heads: 12, kvHeads: 2, headSize: 8 };
    const tensors = [...store("a.q_proj", 96, 96), ...store("a.k_proj", 16, 96), ...store("a.v_proj", 16, 96)];
    for (const worldSize of [1, 2, 3, 4, 5, 6, 12]) {
      const formats = expectStored(worldSize, tensors, qkv("a", 96, heads));
      assert.deepEqual(formats, new Array(worldSize).fill(["code4/32"]), "one weight for the kernels");
    }
  });

  it("value heads of another size than key heads", () => {
    const tensors = [...store("a.q_proj", 24, 64), ...store("a.k_proj", 12, 64), ...store("a.v_proj", 20, 64)];
    expectStored(2, tensors, qkv("a", 64, { heads: 4, kvHeads: 2, headSize: 6, valueHeadSize: 10 }));
  });

  for (const [inputs, group] of [
    [64, 64],
    [96, 32],
  ] as const) {
    it(`fused on disk, K ${inputs}: parts begin inside blocks and are cut by head`, () => {
      const heads: Heads = { heads: 6, kvHeads: 3, headSize: 5 };
      const total = (6 + 2 * 3) * 5;
      const fused = store("a.qkv_proj", total, inputs, { doubleQuant });
      const whole = dequantizeSlowly(fused, "a.qkv_proj");
      for (const worldSize of [1, 2, 3, 4, 6]) {
        const ranks = loadRanks(worldSize, checkpointOf(fused), storedConfig, qkv("a", inputs, heads));
        expectShards(ranks, ({ shardId }) => {
          const start = shardId === "q" ? 0 : shardId === "k" ? 30 : 45;
          return whole.subarray(start * inputs);
        });
        assert.deepEqual(
          ranks.map((linears) => linears.flatMap(formatsOf)),
          new Array(worldSize).fill([`code4/${group}`]),
        );
      }
    });
  }

  it("fused on disk with an odd K falls back to values", () => {
    const fused = store("a.qkv_proj", 24, 35);
    const whole = dequantizeSlowly(fused, "a.qkv_proj");
    const ranks = loadRanks(2, checkpointOf(fused), storedConfig, qkv("a", 35, { heads: 4, kvHeads: 2, headSize: 3 }));
    expectShards(ranks, ({ shardId }) => whole.subarray((shardId === "q" ? 0 : shardId === "k" ? 12 : 18) * 35));
  });

  it("every expert of a mixture, under its name on disk, and the router", () => {
    const source = openFixture("mixtral/nf4");
    const oracle = openOracle("mixtral/nf4");
    for (const worldSize of [1, 2, 3, 4]) {
      const split = even(96, worldSize);
      const cuts = worldSize === 4 ? splitAt(96, 20, 50, 71) : split;
      const builds: Build[] = [];
      for (let layer = 0; layer < 2; layer++) {
        const moe = `model.layers.${layer}.block_sparse_moe`;
        builds.push(replicated(`${moe}.gate`, 4, 64));
        for (let expert = 0; expert < 4; expert++) {
          const prefix = `${moe}.experts.${expert}`;
          builds.push(
            merged(`${prefix}.w13`, 64, [
              { name: `${prefix}.w1`, outputSize: 96, split: cuts },
              { name: `${prefix}.w3`, outputSize: 96, split: cuts },
            ]),
            row(`${prefix}.w2`, 64, 96, cuts),
          );
        }
      }
      const ranks = loadRanks(worldSize, source, storedConfig, ...builds);
      assert.equal(ranks[0]?.length, 2 * (1 + 4 * 2));
      expectShards(ranks, ({ prefix }) => floatsOfTensor(tensorOf(oracle, `${prefix}.weight`)));
    }
  });
});

describe("layers of several storages", () => {
  const skipping =
    (...modules: string[]) =>
    (checkpoint: Checkpoint) => {
      return storedConfig(checkpoint, {}, { llm_int8_skip_modules: modules });
    };
  const heads: Heads = { heads: 4, kvHeads: 2, headSize: 8 };
  const q = randomValues(32 * 64, 11);
  const plainQ = memoryTensor("a.q_proj.weight", "f32", [32, 64], q);

  it("a skipped q beside quantized k and v: a weight each, chosen by what is on disk, and the right output", () => {
    const tensors = [plainQ, ...store("a.k_proj", 16, 64), ...store("a.v_proj", 16, 64)];
    for (const worldSize of [1, 2, 4]) {
      const ranks = loadRanks(worldSize, checkpointOf(tensors), skipping("q_proj"), qkv("a", 64, heads));
      expectShards(ranks, ({ prefix }) => (prefix === "a.q_proj" ? q : dequantizeSlowly(tensors, prefix)));
      assert.deepEqual(
        ranks.map((linears) => linears.flatMap(formatsOf)),
        new Array(worldSize).fill(["dense f32", "code4/64"]),
      );
    }
  });

  it("a plain part in the middle makes three weights", () => {
    const tensors = [
      ...store("a.q_proj", 32, 64),
      memoryTensor("a.k_proj.weight", "f32", [16, 64], randomValues(1024, 5)),
      ...store("a.v_proj", 16, 64),
    ];
    const ranks = loadRanks(2, checkpointOf(tensors), skipping("k_proj"), qkv("a", 64, heads));
    expectShards(ranks, ({ prefix }) =>
      prefix === "a.k_proj" ? randomValues(1024, 5) : dequantizeSlowly(tensors, prefix),
    );
    assert.deepEqual(
      ranks.flatMap((linears) => linears.flatMap(formatsOf)),
      [...new Array(2)].flatMap(() => ["code4/64", "dense f32", "code4/64"]),
    );
  });

  it("parts of one type share a weight whatever their block sizes and nesting; another type needs its own", () => {
    const mixed = [
      ...store("a.q_proj", 32, 64, { blockSize: 32 }),
      ...store("a.k_proj", 16, 64, { blockSize: 4096, doubleQuant }),
      ...store("a.v_proj", 16, 64, { type: "fp4" }),
    ];
    assert.deepEqual(expectStored(2, mixed, qkv("a", 64, heads)), [
      ["code4/32", "code4/64"],
      ["code4/32", "code4/64"],
    ]);
  });

  it("int8 beside 4 bits", () => {
    const values = randomValues(16 * 64, 3);
    const int8 = storeInt8("a.v_proj", [16, 64], values);
    const four = [...store("a.q_proj", 32, 64), ...store("a.k_proj", 16, 64)];
    const ranks = loadRanks(2, checkpointOf([...four, ...int8]), storedConfig, qkv("a", 64, heads));
    const dequantized = floatsOfTensor(tensorOf(viewOf(int8), "a.v_proj.weight"));
    expectShards(ranks, ({ prefix }) => (prefix === "a.v_proj" ? dequantized : dequantizeSlowly(four, prefix)));
    assert.deepEqual(ranks[0]?.flatMap(formatsOf), ["code4/64", "int8"]);
  });

  it("a layer that is not quantized at all is left to shardloom, in its own dtype", () => {
    const ranks = loadRanks(1, checkpointOf([plainQ]), skipping("q_proj"), column("a.q_proj", 32, 64, splitAt(32)));
    assert.deepEqual(ranks[0]?.flatMap(formatsOf), ["dense f32"]);
    assert.equal(ranks[0]?.[0]?.method.constructor.name, "UnquantizedLinearMethod");
  });

  it("a quantized weight of another shape than the layer's is refused, naming both", () => {
    for (const [rows, columns] of [
      [33, 64],
      [32, 65],
      [64, 32],
    ] as const) {
      const load = () =>
        loadRanks(2, checkpointOf(store("X", rows, columns)), storedConfig, column("X", 32, 64, splitAt(32, 16)));
      assert.throws(
        load,
        (error: unknown) =>
          hasCode("SHAPE_MISMATCH", "X.weight")(error) &&
          error instanceof ShardloomError &&
          error.details.expected === "[32, 64]",
      );
    }
    const fused = store("a.qkv_proj", 63, 64);
    assert.throws(
      () => loadRanks(1, checkpointOf(fused), storedConfig, qkv("a", 64, heads)),
      hasCode("SHAPE_MISMATCH", "a.qkv_proj.weight"),
    );
  });

  it("a part that is missing is named with its rank", () => {
    const tensors = [...store("a.q_proj", 32, 64), ...store("a.v_proj", 16, 64)];
    assert.throws(
      () => loadRanks(2, checkpointOf(tensors), storedConfig, qkv("a", 64, heads)),
      hasCode("MISSING_TENSOR", "a.k_proj.weight"),
    );
  });
});

describe("the shard indexer", () => {
  const query = {
    of: "source",
    shardId: "k",
    storageExtent: 1000,
    originalOffsets: () => assert.fail("it was not to be asked"),
    rank: 1,
    worldSize: 2,
    sourceIsLocal: false,
  } as const;

  it("turns rows into bytes without the original offsets: Phi-3's fused k at 2 ranks", () => {
    const extent = { offset: 3072 + 1536, size: 1536 };
    assert.deepEqual(rowIndexer(3072, "X")({ ...query, extent }), { offset: 7077888, size: 2359296 });
  });

  it("refuses rows that end inside a byte, naming weight, shard and rank", () => {
    const ask = () => rowIndexer(33, "X.weight")({ ...query, extent: { offset: 2, size: 3 } });
    assert.throws(
      ask,
      (error: unknown) => hasCode("INEXACT_PACKING", "X.weight")(error) && /shard k on rank 1/.test(String(error)),
    );
    assert.deepEqual(rowIndexer(33, "X")({ ...query, extent: { offset: 2, size: 4 } }), { offset: 33, size: 66 });
  });

  it("is what fused layers load their codes through, and no other layer", () => {
    const tensors = [...store("a", 8, 64), ...store("b", 8, 64), ...store("c", 8, 64)];
    const split = splitAt(8, 4);
    const parts = [
      { name: "a", outputSize: 8, split },
      { name: "b", outputSize: 8, split },
    ];
    const [linears = []] = loadRanks(
      2,
      checkpointOf(tensors),
      storedConfig,
      merged("ab", 64, parts),
      column("c", 8, 64, split),
    );
    const indexed = linears.map(({ parameters }) =>
      parameters.filter(({ spec }) => spec.shardIndexer !== undefined).map(({ name }) => name),
    );
    assert.deepEqual(indexed, [["ab.weight"], []]);
  });
});

describe("property: any shape, block size and cut", () => {
  const cases = fc.record({
    rows: fc.integer({ min: 1, max: 12 }),
    columns: fc.oneof(
      fc.integer({ min: 1, max: 150 }),
      fc.integer({ min: 1, max: 12 }).map((units) => units * 16),
    ),
    blockSize: fc.constantFrom(32, 64, 128, 256, 4096),
    type: fc.constantFrom("nf4", "fp4"),
    doubleQuant: fc.boolean(),
    ranks: fc.integer({ min: 1, max: 5 }),
    cuts: fc.array(fc.nat(), { minLength: 4, maxLength: 4 }),
    unit: fc.constantFrom(1, 2, 8, 16, 32),
  });
  /** Distinct cuts on multiples of `unit` where there are enough. */
  const cut = (total: number, ranks: number, unit: number, cuts: readonly number[]) => {
    const units = Math.floor((total - 1) / unit);
    const ends = [...new Set(cuts.slice(0, ranks - 1).map((value) => (units === 0 ? 0 : (1 + (value % units)) * unit)))]
      .filter((end) => end > 0 && end < total)
      .sort((a, b) => a - b);
    return splitAt(total, ...ends);
  };

  it("stored: column, row, merged and replicated shards are slices of the whole", () => {
    fc.assert(
      fc.property(cases, ({ rows, columns, ranks, cuts, unit, ...options }) => {
        const tensors = [
          ...store("a", rows, columns, options),
          ...store("b", rows, columns, { ...options, blockSize: 64 }),
        ];
        const [a, b] = [dequantizeSlowly(tensors, "a"), dequantizeSlowly(tensors, "b")];
        const wholeOf = ({ prefix }: { prefix: string }) => (prefix === "a" ? a : b);
        const byRows = cut(rows, ranks, 1, cuts);
        const parts = ["a", "b"].map((name) => ({ name, outputSize: rows, split: byRows }));
        const fused = merged("ab", columns, parts);
        expectShards(loadRanks(byRows.length, checkpointOf(tensors), storedConfig, fused), wholeOf);
        expectShards(
          loadRanks(byRows.length, checkpointOf(tensors), storedConfig, column("a", rows, columns, byRows)),
          wholeOf,
        );
        const byColumns = cut(columns, ranks, unit, cuts);
        expectShards(
          loadRanks(byColumns.length, checkpointOf(tensors), storedConfig, row("b", rows, columns, byColumns)),
          wholeOf,
        );
      }),
      { numRuns: 150 },
    );
  });

  it("in flight: at every cut the values of the weight that was quantized whole", () => {
    fc.assert(
      fc.property(cases, fc.integer(), ({ rows, columns, ranks, cuts, unit, ...options }, seed) => {
        const values = randomValues(rows * columns, seed);
        const source = checkpointOf([memoryTensor("a.weight", "f32", [rows, columns], values)]);
        const whole = dequantizeSlowly(storeFourBit("a", [rows, columns], values, options), "a");
        const config = (checkpoint: typeof source) => inFlightConfig(checkpoint, options);
        const byRows = cut(rows, ranks, 1, cuts);
        const byColumns = cut(columns, ranks, unit, cuts);
        expectShards(loadRanks(byRows.length, source, config, column("a", rows, columns, byRows)), () => whole);
        expectShards(loadRanks(byColumns.length, source, config, row("a", rows, columns, byColumns)), () => whole);
      }),
      { numRuns: 150 },
    );
  });

  it("int8: columns and rows, stored and in flight", () => {
    fc.assert(
      fc.property(cases, fc.integer(), ({ rows, columns, ranks, cuts }, seed) => {
        const values = randomValues(rows * columns, seed);
        const stored = storeInt8("a", [rows, columns], values);
        const whole = floatsOfTensor(tensorOf(viewOf(stored), "a.weight"));
        const source = checkpointOf([memoryTensor("a.weight", "f32", [rows, columns], values)]);
        const config = (checkpoint: typeof source) => inFlightConfig(checkpoint, { type: "int8" });
        const byRows = cut(rows, ranks, 1, cuts);
        const byColumns = cut(columns, ranks, 1, cuts);
        for (const build of [column("a", rows, columns, byRows)]) {
          expectShards(loadRanks(byRows.length, checkpointOf(stored), storedConfig, build), () => whole);
          expectShards(loadRanks(byRows.length, source, config, build), () => whole);
        }
        for (const build of [row("a", rows, columns, byColumns)]) {
          expectShards(loadRanks(byColumns.length, checkpointOf(stored), storedConfig, build), () => whole);
          expectShards(loadRanks(byColumns.length, source, config, build), () => whole);
        }
      }),
      { numRuns: 100 },
    );
  });

  it("the refined groups are the scales of the blocks: sizes of loading.md 5.1 and 5.2, counted by hand", () => {
    fc.assert(
      fc.property(cases, ({ rows, columns, blockSize, doubleQuant: nested }) => {
        const tensors = store("a", rows, columns, { blockSize, doubleQuant: nested });
        const [linears = []] = loadRanks(1, checkpointOf(tensors), storedConfig, replicated("a", rows, columns));
        const weight = linears[0]?.method.executionWeights()[0]?.weight ?? assert.fail();
        if (weight.format !== "code4") {
          assert.ok(columns % 16 !== 0);
          return;
        }
        assert.equal(columns % weight.blockSize, 0);
        assert.equal(blockSize % weight.blockSize, 0);
        assert.equal(weight.scales.rows * weight.scales.columns, (rows * columns) / weight.blockSize);
        assert.equal(elementCount(weight.codes.tensor.shape), (rows * columns) / 2);
      }),
    );
  });
});

describe("splits of whole heads", () => {
  it("o_proj is cut where the heads are: columns of a row layer in units of the head size", () => {
    const heads = splitAt(6, 2, 5);
    expectStored(3, store("o", 8, 96), row("o", 8, 96, scaleSplit(heads, 16)));
    expectStored(3, withTensors(store("o", 8, 102), {}), row("o", 8, 102, scaleSplit(heads, 17)));
  });
});
