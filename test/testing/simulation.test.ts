import assert from "node:assert/strict";
import { OptionError } from "../../src/core/errors.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { launch } from "../../src/index.js";
import { type SimulateOptions, type Simulation, simulate } from "../../src/testing/index.js";
import { fixture } from "../fixture.js";
import { collect, readGolden } from "../models/golden.js";
import { configOf, manyHeads, TINY, tiny } from "./models.js";

const PROMPT = [3, 141, 59, 265];

function bits(rows: readonly Float32Array[]): number[][] {
  return rows.map((row) => [...new Uint32Array(row.buffer, row.byteOffset, row.length)]);
}

describe("a simulated tensor-parallel group", () => {
  let open: Simulation[] = [];

  async function load(options: SimulateOptions & { readonly shapeOnly?: false }): Promise<Simulation> {
    const simulation = await simulate(options);
    open.push(simulation);
    return simulation;
  }

  afterEach(async () => {
    await Promise.all(open.map((simulation) => simulation.close()));
    open = [];
  });

  for (const { model, worldSizes } of TINY) {
    const worldSize = worldSizes.at(-1) ?? 1;
    it(`generates the tokens of transformers: ${model} on ${worldSize} ranks`, async () => {
      const simulation = await load({ model: tiny(model), worldSize });
      for (const { promptIds, generatedIds } of readGolden(fixture(`tiny/${model}/bf16.golden.json`)).prompts.slice(
        0,
        3,
      )) {
        const count = Math.min(12, generatedIds.length);
        assert.deepEqual(simulation.generate(promptIds, count).tokenIds, generatedIds.slice(0, count));
      }
    });
  }

  it("computes what worker threads compute, bit for bit", async () => {
    const kernels = nativeAddon().loaded ? "native" : "reference";
    const sampling = { maxTokens: 5, logprobs: 20 };
    const model = tiny("mistral");
    const engine = await launch({ model, tensorParallelSize: 3, activations: "f32", logLevel: "error" });
    const onThreads = await collect(engine, PROMPT, sampling);
    await engine.close();
    const simulation = await load({ model, worldSize: 3, kernels, order: "shuffled" });
    const inTurns = await collect(simulation.engine, PROMPT, sampling);
    assert.deepEqual(inTurns, onThreads);
    assert.equal(onThreads.logprobs.length, 5);
  });

  it("leaves the same bits in whatever order ranks load and take turns", async () => {
    const options = { config: manyHeads(16, 4), worldSize: 8, seed: 1 };
    const expected = (await load(options)).generate(
      PROMPT.map((id) => id % 60),
      4,
    );
    const rotated = (round: number, worldSize: number): number[] => {
      return Array.from({ length: worldSize }, (_, rank) => (rank + round) % worldSize);
    };
    for (const order of ["reversed", "shuffled", rotated] as const) {
      const simulation = await load({ ...options, order });
      const received = simulation.generate(
        PROMPT.map((id) => id % 60),
        4,
      );
      assert.deepEqual(received.tokenIds, expected.tokenIds, String(order));
      assert.deepEqual(bits(received.logits), bits(expected.logits), String(order));
    }
  });

  it("makes weights up from a config: by the seed, the same on any number of ranks up to 64", async () => {
    const config = manyHeads(64, 8);
    const tokens = new Set<string>();
    for (const worldSize of [1, 3, 16, 63, 64]) {
      const simulation = await load({ config, worldSize, seed: 9 });
      tokens.add(simulation.generate([1, 2, 3], 5).tokenIds.join());
    }
    assert.equal(tokens.size, 1);
    const other = await load({ config, worldSize: 2, seed: 10 });
    tokens.add(other.generate([1, 2, 3], 5).tokenIds.join());
    assert.equal(tokens.size, 2);
  });

  it("shows every parameter of every rank: spec, shape, bytes, and which rows of which tensor it holds", async () => {
    const simulation = await load({ model: tiny("mistral"), worldSize: 8 });
    const rank = simulation.ranks[5] ?? assert.fail();
    const qkv = rank.parameter("model.layers.1.self_attn.qkv_proj.weight");
    // 8 heads and 2 KV heads of 16 columns: rank 5 computes head 5, which reads KV head 1.
    assert.deepEqual([qkv.dtype, qkv.shape, qkv.sizeBytes], ["bf16", [48, 128], 48 * 128 * 2]);
    assert.deepEqual(
      qkv.slices.map(({ tensor, shardId, ranges, offset, size }) => ({
        tensor,
        shardId,
        rows: ranges[0],
        offset,
        size,
      })),
      [
        {
          tensor: "model.layers.1.self_attn.k_proj.weight",
          shardId: "k",
          rows: { start: 16, end: 32 },
          offset: 16,
          size: 16,
        },
        {
          tensor: "model.layers.1.self_attn.q_proj.weight",
          shardId: "q",
          rows: { start: 80, end: 96 },
          offset: 0,
          size: 16,
        },
        {
          tensor: "model.layers.1.self_attn.v_proj.weight",
          shardId: "v",
          rows: { start: 16, end: 32 },
          offset: 32,
          size: 16,
        },
      ],
    );
    const layer = rank.layer("model.layers.1.self_attn.qkv_proj");
    assert.deepEqual(layer.values(), qkv.values());
    assert.deepEqual(
      layer.executionWeights().map(({ firstRow, weight }) => [firstRow, weight.format]),
      [[0, "dense"]],
    );
    assert.equal(qkv.bytes().length, qkv.sizeBytes);
    assert.deepEqual(rank.ownership.queryHeads, { start: 5, end: 6 });
    assert.deepEqual(rank.ownership.kvHeads, { start: 1, end: 2 });
    assert.throws(() => rank.layer("model.layers.2.mlp.gate_up_proj"), { code: "INVALID_OPTION" });
    assert.throws(() => rank.parameter("nothing"), { code: "INVALID_OPTION" });
  });

  it("counts what ranks hold alike: norms on all of them, KV heads on those that share them", async () => {
    const simulation = await load({ model: tiny("mistral"), worldSize: 8 });
    const { replicatedBytes, uniqueBytes, ranks, imbalance } = simulation.ownership;
    // Five norms of 128 f32; in two layers, k and v of one KV head: 2 * 16 rows of 128 bf16.
    assert.deepEqual(replicatedBytes, new Array(8).fill(5 * 128 * 4 + 2 * 2 * 16 * 128 * 2));
    const [alone] = (await simulation.unsharded()).ranks;
    assert.equal(uniqueBytes, alone?.ownership.parameterBytes);
    const bytes = ranks.map(({ parameterBytes }) => parameterBytes);
    assert.equal(imbalance, (8 * Math.max(...bytes)) / bytes.reduce((sum, each) => sum + each, 0));
  });

  it("takes a prompt in chunks, and token by token, to the same logits", async () => {
    const prompt = Array.from({ length: 40 }, (_, i) => (i * 37) % 500);
    const whole = await load({ model: tiny("qwen3"), worldSize: 3 });
    const chunked = await load({
      model: tiny("qwen3"),
      worldSize: 3,
      maxSequences: 1,
      maxTokensPerStep: 7,
      blockSize: 4,
    });
    const rows = whole.logits(prompt);
    assert.equal(rows.length, 40);
    assert.deepEqual(bits(chunked.logits(prompt)), bits(rows));
    assert.deepEqual(bits([chunked.prefill(prompt)]), bits(rows.slice(-1)));
    assert.equal(whole.trace.steps.length, 1);
    assert.equal(chunked.trace.steps.length, 12);
    chunked.prefill(prompt.slice(0, 20));
    assert.deepEqual(bits(prompt.slice(20).map((id) => chunked.decode(id))), bits(rows.slice(20)));
  });

  it("has an engine, which takes over the cache: a sequence that was decoded before it ran cannot go on", async () => {
    const simulation = await load({ model: tiny("llama"), worldSize: 2 });
    const { tokenIds } = simulation.generate(PROMPT, 4);
    const answer = await collect(simulation.engine, PROMPT, { maxTokens: 4 });
    assert.deepEqual(answer.tokenIds, tokenIds);
    assert.throws(() => simulation.decode(1), { code: "INVALID_OPTION", message: /expected a prefill/ });
    const request = simulation.engine.generate({ promptTokenIds: PROMPT, sampling: { maxTokens: 4 } });
    await request.next();
    assert.throws(() => simulation.prefill(PROMPT), { code: "SIMULATION_BUSY" });
    await request.return();
    simulation.prefill(PROMPT);
  });

  it("refuses what no rank could compute", async () => {
    const simulation = await load({ model: tiny("llama"), worldSize: 2, maxModelLength: 8 });
    assert.throws(() => simulation.decode(1), { code: "INVALID_OPTION" });
    assert.throws(() => simulation.prefill([]), { code: "EMPTY_PROMPT" });
    assert.throws(() => simulation.prefill([500]), { code: "INVALID_TOKEN_ID" });
    assert.throws(() => simulation.prefill(new Array(9).fill(1)), { code: "PROMPT_TOO_LONG" });
    simulation.prefill(new Array(8).fill(1));
    assert.throws(() => simulation.decode(1), { code: "PROMPT_TOO_LONG" });
    assert.throws(() => simulation.decode(-1), { code: "INVALID_TOKEN_ID" });
  });

  it("refuses options that mean nothing, and models that cannot be split", async () => {
    const config = configOf("llama");
    const refused: readonly (readonly [SimulateOptions & { readonly shapeOnly?: false }, string])[] = [
      [{ worldSize: 1 }, "INVALID_OPTION"],
      [{ worldSize: 1, config, model: tiny("llama") }, "INVALID_OPTION"],
      [{ worldSize: 1, config, loadFormat: "safetensors" }, "INVALID_OPTION"],
      [{ worldSize: 0, config }, "INVALID_WORLD_SIZE"],
      [{ worldSize: 65, config }, "INVALID_WORLD_SIZE"],
      [{ worldSize: 5, config }, "TOO_MANY_RANKS"],
      [{ worldSize: 1, config, seed: -1 }, "INVALID_OPTION"],
      [{ worldSize: 1, config, seed: 2 ** 32 }, "INVALID_OPTION"],
      // Options of no method would have no effect.
      [{ worldSize: 1, config, quantizationOptions: { type: "nf4" } }, "INVALID_OPTION"],
      [{ worldSize: 1, config, quantization: "none-such" }, "UNKNOWN_QUANTIZATION"],
      [{ worldSize: 1, config: { ...config, architectures: ["Unheard"] } }, "UNSUPPORTED_ARCHITECTURE"],
      [{ worldSize: 1, model: "/no/such/model" }, "MODEL_NOT_FOUND"],
      [{ worldSize: 1, config, maxModelLength: 513 }, "CONTEXT_TOO_LONG"],
      [{ worldSize: 1, config, kvCacheBytes: 100 }, "KV_CACHE_TOO_SMALL"],
    ];
    for (const [options, code] of refused) await assert.rejects(simulate(options), { code }, JSON.stringify(options));
    for (const wrong of [{ order: "backwards" }, { kernels: "fast" }, { dtype: "i8" }]) {
      // From JavaScript, options may be anything.
      const options = JSON.parse(JSON.stringify({ worldSize: 1, config, ...wrong }));
      await assert.rejects(simulate(options), OptionError, JSON.stringify(wrong));
    }
  });

  it("keeps each rank within a memory limit, and names the rank and the tensor that would not fit", async () => {
    const options = { config: manyHeads(16, 4), worldSize: 4 };
    const { ranks } = (await load(options)).ownership;
    const [need = 0] = ranks.map((rank) => rank.parameterBytes + rank.kvCacheBytes + rank.activationBytes);
    await load({ ...options, memoryLimitBytes: 2 * need });
    await assert.rejects(simulate({ ...options, memoryLimitBytes: need / 2 }), (error: unknown) => {
      assert.ok(error instanceof Error && "code" in error && "details" in error);
      assert.equal(error.code, "OUT_OF_MEMORY");
      assert.match(error.message, /^rank 0: expected all tensors to fit into \d+ bytes but .* would make it \d+$/);
      return true;
    });
  });

  it("is of no use once closed, and closes what it opened", async () => {
    const simulation = await simulate({ model: tiny("llama"), worldSize: 2 });
    const { engine } = simulation;
    const unsharded = await simulation.unsharded();
    await Promise.all([simulation.close(), simulation.close()]);
    assert.throws(() => simulation.prefill(PROMPT), { code: "SIMULATION_CLOSED" });
    assert.throws(() => unsharded.prefill(PROMPT), { code: "SIMULATION_CLOSED" });
    assert.throws(() => simulation.engine, { code: "SIMULATION_CLOSED" });
    assert.throws(() => simulation.unsharded(), { code: "SIMULATION_CLOSED" });
    await assert.rejects(engine.generate({ promptTokenIds: PROMPT }).next(), { code: "ENGINE_CLOSED" });
  });

  it("says which rank failed, and stays failed", async () => {
    const simulation = await load({
      model: tiny("llama"),
      worldSize: 3,
      intercept: function* (pass, rank) {
        yield* pass;
        if (rank === 2) throw new TypeError("out of luck");
      },
    });
    for (let i = 0; i < 2; i++) {
      assert.throws(
        () => simulation.prefill(PROMPT),
        (error: unknown) =>
          error instanceof Error && /out of luck/.test(error.message) && JSON.stringify(error).includes('"rank":2'),
      );
    }
  });
});
