/** Layers whose parts are stored differently, and the shard indexer that fused layers load their codes through. */
import assert from "node:assert/strict";
import { type Checkpoint, ShardloomError } from "shardloom/plugin";
import { checkpointOf } from "shardloom/testing";
import { rowIndexer } from "../src/row-indexer.js";
import {
  dequantizeSlowly,
  floatsOfTensor,
  hasCode,
  memoryTensor,
  randomValues,
  storedConfig,
  storeInt8,
  storeRandom,
  tensorOf,
  viewOf,
} from "./fixture.js";
import {
  column,
  expectShards,
  expectStored,
  formatsOf,
  type Heads,
  loadRanks,
  merged,
  qkv,
  splitAt,
} from "./layer-fixture.js";

const doubleQuant = true;

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
    const tensors = [plainQ, ...storeRandom("a.k_proj", 16, 64), ...storeRandom("a.v_proj", 16, 64)];
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
      ...storeRandom("a.q_proj", 32, 64),
      memoryTensor("a.k_proj.weight", "f32", [16, 64], randomValues(1024, 5)),
      ...storeRandom("a.v_proj", 16, 64),
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
      ...storeRandom("a.q_proj", 32, 64, { blockSize: 32 }),
      ...storeRandom("a.k_proj", 16, 64, { blockSize: 4096, doubleQuant }),
      ...storeRandom("a.v_proj", 16, 64, { type: "fp4" }),
    ];
    assert.deepEqual(expectStored(2, mixed, qkv("a", 64, heads)), [
      ["code4/32", "code4/64"],
      ["code4/32", "code4/64"],
    ]);
  });

  it("int8 beside 4 bits", () => {
    const values = randomValues(16 * 64, 3);
    const int8 = storeInt8("a.v_proj", [16, 64], values);
    const four = [...storeRandom("a.q_proj", 32, 64), ...storeRandom("a.k_proj", 16, 64)];
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
        loadRanks(2, checkpointOf(storeRandom("X", rows, columns)), storedConfig, column("X", 32, 64, splitAt(32, 16)));
      assert.throws(
        load,
        (error: unknown) =>
          hasCode("SHAPE_MISMATCH", "X.weight")(error) &&
          error instanceof ShardloomError &&
          error.details.expected === "[32, 64]",
      );
    }
    const fused = storeRandom("a.qkv_proj", 63, 64);
    assert.throws(
      () => loadRanks(1, checkpointOf(fused), storedConfig, qkv("a", 64, heads)),
      hasCode("SHAPE_MISMATCH", "a.qkv_proj.weight"),
    );
  });

  it("a part that is missing is named with its rank", () => {
    const tensors = [...storeRandom("a.q_proj", 32, 64), ...storeRandom("a.v_proj", 16, 64)];
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
    const tensors = [...storeRandom("a", 8, 64), ...storeRandom("b", 8, 64), ...storeRandom("c", 8, 64)];
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
