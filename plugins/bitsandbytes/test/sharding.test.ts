/** Shards of quantized weights: each rank's values are its slice of the unsharded weight, to the bit. */
import assert from "node:assert/strict";
import { checkpointOf } from "shardloom/testing";
import {
  dequantizeSlowly,
  floatsOfTensor,
  openFixture,
  openOracle,
  storedConfig,
  storeRandom,
  tensorOf,
  withTensors,
} from "./fixture.js";
import {
  type Build,
  column,
  embedding,
  even,
  expectShards,
  expectStored,
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

const doubleQuant = true;

describe("sharding 4-bit weights", () => {
  it("nested NF4 at Llama's ratios, 1 to 8 ranks, column and row", () => {
    const down = storeRandom("down", 64, 512, { doubleQuant });
    const up = storeRandom("up", 512, 64, { doubleQuant });
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
    assert.deepEqual(expectStored(2, storeRandom("X", 7, 96), column("X", 7, 96, splitAt(7, 3))), [
      ["code4/32"],
      ["code4/32"],
    ]);
  });

  it("odd K: rows begin in low halves of bytes, so values are kept as f32", () => {
    const tensors = storeRandom("X", 9, 33, { doubleQuant });
    assert.deepEqual(
      expectStored(3, tensors, column("X", 9, 33, splitAt(9, 2, 5))).flat(),
      new Array(3).fill("dense f32"),
    );
    assert.deepEqual(expectStored(2, tensors, row("X", 9, 33, splitAt(33, 10))).flat(), new Array(2).fill("dense f32"));
  });

  it("row shards that start in the middle of a block in every row: K 4864 at 8 ranks, as Qwen2.5-0.5B's down_proj", () => {
    const formats = expectStored(8, storeRandom("X", 3, 4864), row("X", 3, 4864, even(4864, 8)));
    assert.deepEqual(formats.flat(), new Array(8).fill("code4/32"));
  });

  it("row shards whose phase changes from row to row: K 4304 at 2 ranks, cut where 16 divides and where only 8 does", () => {
    const tensors = storeRandom("X", 5, 4304);
    assert.deepEqual(expectStored(1, tensors, row("X", 5, 4304, splitAt(4304))).flat(), ["code4/16"]);
    assert.deepEqual(expectStored(2, tensors, row("X", 5, 4304, splitAt(4304, 2144))).flat(), ["code4/16", "code4/16"]);
    assert.deepEqual(expectStored(2, tensors, row("X", 5, 4304, splitAt(4304, 2152))).flat(), [
      "dense f32",
      "dense f32",
    ]);
  });

  it("a weight smaller than a block, and blocks that several ranks share", () => {
    expectStored(2, storeRandom("X", 2, 16), column("X", 2, 16, splitAt(2, 1)));
    expectStored(4, storeRandom("Y", 3, 64, { blockSize: 4096 }), row("Y", 3, 64, even(64, 4)));
    expectStored(3, storeRandom("Z", 3, 64, { blockSize: 256, doubleQuant }), column("Z", 3, 64, splitAt(3, 1, 2)));
  });

  it("nested absmax from inside a group of 256 on: SmolLM2's k_proj [192, 576] at 3 ranks", () => {
    expectStored(3, storeRandom("X", 192, 576, { doubleQuant }), column("X", 192, 576, even(192, 3)));
  });

  it("whole on every rank, or looked up by row", () => {
    expectStored(2, storeRandom("X", 5, 64), replicated("X", 5, 64));
    expectStored(2, storeRandom("X", 5, 64, { type: "fp4" }), embedding("X", 5, 64, splitAt(5, 3)));
  });

  it("QKV with KV heads on several ranks at once holds identical rows on them", () => {
    const heads: Heads = { heads: 12, kvHeads: 2, headSize: 8 };
    const tensors = [
      ...storeRandom("a.q_proj", 96, 96),
      ...storeRandom("a.k_proj", 16, 96),
      ...storeRandom("a.v_proj", 16, 96),
    ];
    for (const worldSize of [1, 2, 3, 4, 5, 6, 12]) {
      const formats = expectStored(worldSize, tensors, qkv("a", 96, heads));
      assert.deepEqual(formats, new Array(worldSize).fill(["code4/32"]), "one weight for the kernels");
    }
  });

  it("value heads of another size than key heads", () => {
    const tensors = [
      ...storeRandom("a.q_proj", 24, 64),
      ...storeRandom("a.k_proj", 12, 64),
      ...storeRandom("a.v_proj", 20, 64),
    ];
    expectStored(2, tensors, qkv("a", 64, { heads: 4, kvHeads: 2, headSize: 6, valueHeadSize: 10 }));
  });

  for (const [inputs, group] of [
    [64, 64],
    [96, 32],
  ] as const) {
    it(`fused on disk, K ${inputs}: parts begin inside blocks and are cut by head`, () => {
      const heads: Heads = { heads: 6, kvHeads: 3, headSize: 5 };
      const total = (6 + 2 * 3) * 5;
      const fused = storeRandom("a.qkv_proj", total, inputs, { doubleQuant });
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

  it("fused on disk, interleaved by KV group: each group's rows begin inside blocks of their own", () => {
    const fused = storeRandom("a.qkv_proj", 3 * (2 + 1 + 1) * 5, 96, { doubleQuant });
    const whole = dequantizeSlowly(fused, "a.qkv_proj");
    const heads: Heads = { heads: 6, kvHeads: 3, headSize: 5, fusedLayout: "interleaved" };
    // Rows of a part: of every group of 20 rows, those from `first` on.
    const rowsOf = (first: number, count: number): Float32Array => {
      const groups = [0, 1, 2].map((group) =>
        whole.subarray((group * 20 + first) * 96, (group * 20 + first + count) * 96),
      );
      return Float32Array.from(groups.flatMap((rows) => [...rows]));
    };
    const parts = { q: rowsOf(0, 10), k: rowsOf(10, 5), v: rowsOf(15, 5) };
    for (const worldSize of [1, 2, 3, 4, 6]) {
      const ranks = loadRanks(worldSize, checkpointOf(fused), storedConfig, qkv("a", 96, heads));
      expectShards(ranks, ({ shardId }) =>
        shardId === "q" || shardId === "k" || shardId === "v" ? parts[shardId] : assert.fail(),
      );
    }
  });

  it("fused on disk with an odd K falls back to values", () => {
    const fused = storeRandom("a.qkv_proj", 24, 35);
    const whole = dequantizeSlowly(fused, "a.qkv_proj");
    const ranks = loadRanks(2, checkpointOf(fused), storedConfig, qkv("a", 35, { heads: 4, kvHeads: 2, headSize: 3 }));
    expectShards(ranks, ({ shardId }) => whole.subarray((shardId === "q" ? 0 : shardId === "k" ? 12 : 18) * 35));
  });

  it("weights and sidecars in any order, as files may hold them", () => {
    const tensors = [...storeRandom("a", 8, 96, { doubleQuant }), ...storeRandom("b", 8, 96)];
    const parts = ["a", "b"].map((name) => ({ name, outputSize: 8, split: splitAt(8, 3) }));
    for (const order of [tensors, [...tensors].reverse(), [...tensors].sort((x, y) => (x.name < y.name ? -1 : 1))]) {
      expectStored(2, order, merged("ab", 96, parts));
    }
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

  it("o_proj is cut where the heads are: columns of a row layer in units of the head size", () => {
    const heads = splitAt(6, 2, 5);
    expectStored(3, storeRandom("o", 8, 96), row("o", 8, 96, scaleSplit(heads, 16)));
    expectStored(3, withTensors(storeRandom("o", 8, 102), {}), row("o", 8, 102, scaleSplit(heads, 17)));
  });
});
