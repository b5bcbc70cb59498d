import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { payloadOf } from "../../src/collectives/payload.js";
import {
  expectIndexerCalls,
  expectOwnedOnce,
  expectRanksAgree,
  expectReassembles,
  expectSameLogits,
  type PassInterceptor,
  type SimulateOptions,
  type Simulation,
  SimulationAssertionError,
  simulate,
} from "../../src/testing/index.js";
import { temporaryFolder } from "../checkpoint/files.js";
import { blockScalePlugin } from "./block-scale-plugin.js";
import { type Fault, flatPlugin } from "./flat-plugin.js";
import { configOf, manyHeads, TINY, tiny } from "./models.js";

/** The error an assertion must throw, for its message and fields to be looked at. */
async function failureOf(assertion: () => unknown): Promise<SimulationAssertionError> {
  try {
    await assertion();
  } catch (error) {
    assert.ok(error instanceof SimulationAssertionError, String(error));
    assert.ok(error instanceof assert.AssertionError);
    return error;
  }
  assert.fail("the assertion held");
}

describe("assertions about a simulation", () => {
  const folder = temporaryFolder();
  let open: Simulation[] = [];

  async function load(options: SimulateOptions & { readonly shapeOnly?: false }): Promise<Simulation> {
    const simulation = await simulate(options);
    open.push(simulation);
    return simulation;
  }

  function flat(worldSize: number, fault: Fault | null, model = "mistral"): Promise<Simulation> {
    return load({ model: tiny(model), worldSize, plugins: [flatPlugin(fault)], quantization: "flat" });
  }

  afterEach(async () => {
    await Promise.all(open.map((simulation) => simulation.close()));
    open = [];
  });

  for (const { model, worldSizes } of TINY) {
    it(`all hold for ${model} on ${worldSizes.join(", ")} ranks`, async () => {
      for (const worldSize of worldSizes) {
        const simulation = await load({ model: tiny(model), worldSize, order: "shuffled", seed: worldSize });
        const unsharded = await simulation.unsharded();
        const tensors = Object.values(expectOwnedOnce(simulation)).flat();
        const { checkpointSlices, matrices, vectors } = await expectReassembles(simulation);
        const parameters = simulation.ranks[0]?.parameters.length ?? 0;
        assert.ok(matrices > 10 && vectors >= 5 && checkpointSlices >= parameters, `${matrices}, ${vectors}`);
        assert.ok(new Set(tensors).size === tensors.length && tensors.length > 10);
        const { rows, largestDifference } = expectSameLogits(simulation, unsharded, 1e-4);
        assert.equal(rows, 21);
        assert.equal(largestDifference === 0, worldSize === 1);
        assert.equal(expectRanksAgree(simulation) > 0, worldSize > 1);
        expectIndexerCalls(simulation, { calls: [] });
      }
    });
  }

  it("hold for 64 ranks that share 8 KV heads, and say which tensors are shared and which replicated", async () => {
    const simulation = await load({ config: manyHeads(64, 8), worldSize: 64 });
    const { split, shared, replicated } = expectOwnedOnce(simulation);
    assert.deepEqual(
      shared.toSorted(),
      [0, 1].flatMap((layer) => ["k", "v"].map((shard) => `model.layers.${layer}.self_attn.${shard}_proj.weight`)),
    );
    assert.ok(split.includes("lm_head.weight") && split.includes("model.layers.1.mlp.down_proj.weight"));
    assert.ok(replicated.every((name) => name.endsWith("norm.weight")) && replicated.length === 5);
    await expectReassembles(simulation);
    expectSameLogits(simulation, await simulation.unsharded(), 1e-4);
    expectRanksAgree(simulation);
  });

  it("hold for biases of every kind of layer: split, merged, and added once after a sum", async () => {
    const config = manyHeads(12, 3, { attention_bias: true, mlp_bias: true });
    for (const worldSize of [2, 3, 5, 12]) {
      const simulation = await load({ config, worldSize, seed: 4 });
      const { replicated, split } = expectOwnedOnce(simulation);
      assert.ok(replicated.includes("model.layers.0.mlp.down_proj.bias"));
      assert.ok(split.includes("model.layers.0.mlp.up_proj.bias"));
      const { vectors } = await expectReassembles(simulation);
      assert.equal(vectors, 2 * 4 + 5);
      expectSameLogits(simulation, await simulation.unsharded(), 1e-4);
    }
  });

  it("hold for a format that stores fused layers as one column, which only its shard indexer understands", async () => {
    for (const [model, worldSize] of [
      ["mistral", 8],
      ["llama-uneven", 4],
      ["phi3", 4],
    ] as const) {
      const simulation = await flat(worldSize, null, model);
      expectOwnedOnce(simulation);
      await expectReassembles(simulation);
      expectSameLogits(simulation, await simulation.unsharded(), 1e-4);
      const plain = await load({ model: tiny(model), worldSize });
      expectSameLogits(simulation, plain, 0);
    }
  });

  it("know that ranks on both sides of a block that a boundary cuts hold its scale, and nothing else", async () => {
    // Intermediate size 224 on 3 ranks: rows and columns are cut at 128, inside a block of 48, and at 192, between two.
    const simulation = await load({
      model: tiny("mistral"),
      worldSize: 3,
      plugins: [blockScalePlugin()],
      quantization: "block-scale",
    });
    const { shared, split } = expectOwnedOnce(simulation);
    assert.ok(shared.includes("model.layers.0.mlp.gate_proj.weight_scale"));
    assert.ok(shared.includes("model.layers.1.mlp.down_proj.weight_scale"));
    assert.ok(split.includes("model.layers.1.mlp.down_proj.weight"));
    const down = simulation.ownership.tensors.find(
      ({ tensor }) => tensor === "model.layers.1.mlp.down_proj.weight_scale",
    );
    assert.deepEqual(
      down?.cells.map(({ box, holders }) => [box[1]?.start, box[1]?.end, holders.map(({ rank }) => rank)]),
      [
        [0, 2, [0]],
        [2, 3, [0, 1]],
        [3, 4, [1]],
        [4, 5, [2]],
      ],
    );
    await expectReassembles(simulation);
  });

  it("let a format store a weight differently on one rank: what that rank does without is nobody's", async () => {
    const options = { model: tiny("mistral"), worldSize: 3, quantization: "block-scale" };
    const simulation = await load({ ...options, plugins: [blockScalePlugin(2)] });
    expectOwnedOnce(simulation);
    const scale = simulation.ownership.tensors.find(({ tensor }) => tensor.endsWith("down_proj.weight_scale"));
    assert.deepEqual(scale?.ranks, [0, 1]);
    assert.deepEqual(scale?.cells.at(-1)?.holders, []);
    await expectReassembles(simulation);
  });

  describe("fail, naming the place", () => {
    it("when two ranks hold the same rows and nobody the others", async () => {
      const { message, details } = await failureOf(async () => expectOwnedOnce(await flat(2, "ignores the rank")));
      assert.match(
        message,
        /^model\.layers\.0\.self_attn\.k_proj\.weight \(.*\), shard k, index \[0, 0\]: expected one rank to hold it but received ranks 0, 1$/,
      );
      assert.equal(details.layer, "model.layers.0.self_attn.qkv_proj");
      assert.deepEqual([details.shardId, details.index], ["k", [0, 0]]);
    });

    it("when a shard is not the slice of the whole that it should be", async () => {
      const simulation = await flat(2, "ignores the rank");
      const { message, details } = await failureOf(() => expectReassembles(simulation));
      assert.match(
        message,
        /^model\.layers\.0\.\w+\.\w+_proj\.weight: rank 1, shard \w, index \[\d+, \d+\]: expected -?[\d.e-]+ but received -?[\d.e-]+$/,
      );
      assert.equal(details.rank, 1);
      assert.equal(details.layer, "model.layers.0.self_attn.qkv_proj");
      assert.equal(details.shardId, "q");
      // Rank 1 has four of eight heads of 16 columns.
      assert.deepEqual(details.index, [64, 0]);
    });

    it("when a rank changes an element of its shard after loading", async () => {
      const { details } = await failureOf(async () => expectReassembles(await flat(2, "changes an element")));
      const { layer, rank, shardId, index } = details;
      assert.deepEqual(
        { layer, rank, shardId, index },
        { layer: "model.layers.0.self_attn.qkv_proj", rank: 1, shardId: "q", index: [64, 0] },
      );
      assert.notEqual(details.expected, details.received);
    });

    it("when logits differ: the position, the id, and the rank that computed it", async () => {
      const config = configOf("llama");
      const [one, other] = [
        await load({ config, worldSize: 3, seed: 1 }),
        await load({ config, worldSize: 1, seed: 2 }),
      ];
      const { message, details } = await failureOf(() => expectSameLogits(one, other, 1e-4));
      assert.match(
        message,
        /^logits at position 0, rank 0, vocabulary id 0: expected .* they differ by .*, more than 0\.0001$/,
      );
      assert.deepEqual(details.index, [0, 0]);
      const wrong = await flat(2, "ignores the rank");
      const failure = await failureOf(async () =>
        expectSameLogits(wrong, await load({ model: tiny("mistral"), worldSize: 1 }), 1e-4),
      );
      assert.equal(typeof failure.details.rank, "number");
    });

    it("when a rank drifts from the others: the first collective at which it shows", async () => {
      const drifting: PassInterceptor = function* (pass, rank) {
        let count = 0;
        for (let next = pass.next(); next.done !== true; next = pass.next()) {
          yield next.value;
          const request = next.value;
          // After the embedding, on rank 2: what it goes on with is not what the others go on with.
          if (rank === 2 && ++count === 1 && request.kind === "allReduce") payloadOf(request.data).f32[3] = 1e4;
        }
      };
      const simulation = await load({ model: tiny("llama"), worldSize: 4, intercept: drifting });
      const { message, details } = await failureOf(() => expectRanksAgree(simulation));
      assert.match(
        message,
        /^residual at model\.layers\.0\.self_attn\.o_proj, step 0, collective 2, rank 2, index \[0, 3\]: expected .*, as on rank 0, but received 10000$/,
      );
      assert.equal(details.received, 1e4);
    });

    it("when a shard indexer is asked something else, more, or less; or offsets are computed that nobody needs", async () => {
      const simulation = await flat(2, "asks for offsets");
      const calls = simulation.indexerCalls;
      // Both layers, each with q, k, v, gate and up, for destination and source, on two ranks; local and global scopes.
      assert.equal(calls.length, 2 * 5 * 2 * 2);
      expectIndexerCalls(simulation, { calls, offsetComputations: 8 });
      const [first, second] = calls;
      assert.deepEqual(
        [first, second].map((call) => [call?.rank, call?.shardId, call?.of, call?.extent, call?.answer]),
        [
          [0, 0, "destination", { offset: 0, size: 128 }, { offset: 0, size: 128 * 128 }],
          [0, 0, "source", { offset: 0, size: 128 }, { offset: 0, size: 128 * 128 }],
        ],
      );
      const changed = calls.map((call, i) => (i === 3 ? { ...call, rank: 1 } : call));
      const wrong = await failureOf(() => expectIndexerCalls(simulation, { calls: changed, offsetComputations: 8 }));
      assert.match(
        wrong.message,
        /^shard indexer, call 3: rank \(model.*, rank 0, shard 1\): expected 1 but received 0$/,
      );
      const fewer = await failureOf(() =>
        expectIndexerCalls(simulation, { calls: calls.slice(1), offsetComputations: 8 }),
      );
      assert.match(fewer.message, /call 0: of|call 0: /);
      const surplus = await failureOf(() =>
        expectIndexerCalls(simulation, { calls: calls.slice(0, -1), offsetComputations: 8 }),
      );
      assert.match(surplus.message, /expected 39 calls but received 40/);
      const missing = await failureOf(() =>
        expectIndexerCalls(simulation, { calls: [...calls, {}], offsetComputations: 8 }),
      );
      assert.match(missing.message, /call 40: expected .* but received no call/);
      const computed = await failureOf(() => expectIndexerCalls(simulation, { calls }));
      assert.match(computed.message, /expected 0 computations but received 8/);
    });
  });

  it("computes no original offsets for an indexer that does not ask", async () => {
    const simulation = await flat(3, null);
    assert.equal(simulation.indexerCalls.length, 2 * 5 * 2 * 3);
    expectIndexerCalls(simulation, { calls: simulation.indexerCalls, offsetComputations: 0 });
  });

  it("need no particular test runner: node's own shows what failed", () => {
    const simulator = new URL("../../src/testing/index.js", import.meta.url).href;
    const file = folder.write(
      "runner.test.mjs",
      `import { test } from "node:test";
       import { expectOwnedOnce, expectSameLogits, simulate } from ${JSON.stringify(simulator)};
       const config = ${JSON.stringify(manyHeads(8, 2))};
       const [a, b] = await Promise.all([1, 2].map((seed) => simulate({ config, worldSize: 2, seed })));
       test("holds", () => expectOwnedOnce(a));
       test("fails", () => expectSameLogits(a, b, 1e-4));`,
    );
    const env = { ...process.env };
    delete env["NODE_TEST_CONTEXT"];
    const { stdout, status } = spawnSync(process.execPath, ["--test", "--test-reporter=tap", file], {
      encoding: "utf8",
      env,
    });
    assert.equal(status, 1);
    assert.match(stdout, /^ *ok 1 - holds/m);
    assert.match(stdout, /^ *not ok 2 - fails/m);
    assert.match(stdout, /logits at position 0, rank 0, vocabulary id 0: expected/);
  });
});
