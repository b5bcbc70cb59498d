import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import { elementCount } from "../../src/core/tensor.js";
import { expectIndexerCalls, expectOwnedOnce, type RankOwnership, simulate } from "../../src/testing/index.js";
import { checkpointError, safetensorsBytes, temporaryFolder } from "../checkpoint/files.js";
import { flatPlugin } from "./flat-plugin.js";
import { configOf, manyHeads, PUBLISHED, publishedConfig, TINY, tiny } from "./models.js";

const MEGABYTE = 1e6;

/** What does not depend on whether bytes were there. */
function plan({ bytesRead: _, activationBytes: __, ...rest }: RankOwnership): unknown {
  return rest;
}

describe("a simulation without bytes", () => {
  const folder = temporaryFolder();

  for (const { model, worldSizes } of TINY) {
    it(`partitions and loads as the one with bytes does, and exchanges as much: ${model}`, async () => {
      for (const worldSize of worldSizes) {
        const options = { model: tiny(model), worldSize, maxSequences: 2 };
        const shapes = await simulate({ ...options, shapeOnly: true });
        const values = await simulate(options);
        assert.deepEqual(shapes.ownership.tensors, values.ownership.tensors);
        assert.deepEqual(shapes.ownership.ranks.map(plan), values.ownership.ranks.map(plan));
        assert.deepEqual(shapes.ownership.replicatedBytes, values.ownership.replicatedBytes);
        assert.deepEqual(expectOwnedOnce(shapes), expectOwnedOnce(values));
        values.prefill([1, 2, 3]);
        shapes.step({ tokens: 3 });
        const collectives = ({ trace }: typeof shapes | typeof values) =>
          trace.steps[0]?.collectives.map(({ sequence, site, kind, bytes }) => ({ sequence, site, kind, bytes }));
        // A prefill wants the whole logits, a step without bytes only the likeliest token.
        assert.deepEqual(
          collectives(shapes)?.slice(0, -1),
          collectives(values)?.slice(0, worldSize === 1 ? undefined : -1),
        );
        await values.close();
      }
    });
  }

  it("reads no byte of any weight, whether there are headers or a config alone", async () => {
    const fromHeaders = await simulate({ model: tiny("llama-uneven"), worldSize: 3, shapeOnly: true });
    const fromConfig = await simulate({ config: configOf("llama-uneven"), worldSize: 3, shapeOnly: true });
    const read = [...fromHeaders.ownership.ranks, ...fromConfig.ownership.ranks].map(({ bytesRead }) => bytesRead);
    assert.deepEqual(read, new Array(6).fill(0));
    // The order in which a file holds tensors is no matter of the partition.
    const tensors = ({ ownership }: typeof fromHeaders) =>
      ownership.tensors
        .map(({ tensor, cells }) => ({ tensor, cells }))
        .toSorted((a, b) => a.tensor.localeCompare(b.tensor));
    assert.deepEqual(tensors(fromConfig), tensors(fromHeaders));
    const parameter = fromConfig.ranks[0]?.parameter("model.norm.weight");
    assert.throws(() => parameter?.bytes(), { code: "INTERNAL", message: /virtual/ });
    assert.deepEqual(fromConfig.ranks[0]?.layers[0]?.executionWeights(), []);
  });

  it("finds what is missing, left over, of the wrong shape or dtype, from headers alone", async () => {
    const source = SafetensorsDirectory.open(tiny("llama"));
    const tensors = [...source.tensors.values()];
    source.close();
    const cases: readonly (readonly [string, Record<string, { dtype?: string; shape?: readonly number[] } | null>])[] =
      [
        ["MISSING_TENSOR", { "model.layers.1.self_attn.v_proj.weight": null }],
        ["UNEXPECTED_TENSOR", { "model.layers.2.input_layernorm.weight": { shape: [128] } }],
        ["SHAPE_MISMATCH", { "model.layers.0.mlp.down_proj.weight": { shape: [128, 255] } }],
        ["SHAPE_MISMATCH", { "model.layers.0.self_attn.q_proj.weight": { shape: [127, 128] } }],
        ["DTYPE_MISMATCH", { "model.embed_tokens.weight": { dtype: "I8" } }],
      ];
    cpSync(join(tiny("llama"), "config.json"), join(folder.path, "config.json"));
    for (const [code, changes] of cases) {
      const header: Record<string, unknown> = {};
      let offset = 0;
      const entries = new Map(tensors.map(({ name, shape }) => [name, { dtype: "BF16", shape }]));
      for (const [name, change] of Object.entries(changes)) {
        if (change === null) entries.delete(name);
        else entries.set(name, { dtype: "BF16", shape: [], ...entries.get(name), ...change });
      }
      for (const [name, { dtype, shape }] of entries) {
        const end = offset + elementCount(shape) * (dtype === "I8" ? 1 : 2);
        header[name] = { dtype, shape, data_offsets: [offset, end] };
        offset = end;
      }
      folder.write("model.safetensors", safetensorsBytes(header, new Uint8Array(offset)));
      const loading = simulate({ model: folder.path, worldSize: 2, shapeOnly: true });
      await assert.rejects(
        loading,
        checkpointError(code, new RegExp(Object.keys(changes)[0]?.replaceAll(".", "\\.") ?? "")),
      );
    }
  });

  for (const { name, parameters, layers } of PUBLISHED) {
    it(`partitions ${name} on 2 to 64 ranks: as many parameters as its authors publish, none twice, none missing`, async () => {
      for (const worldSize of [2, 6, 16, 64]) {
        const simulation = await simulate({ config: publishedConfig(name), worldSize, shapeOnly: true });
        const { ownership, config } = simulation;
        const elements = ownership.tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0);
        assert.equal(elements, parameters);
        const { shared, split, replicated } = expectOwnedOnce(simulation);
        assert.equal(shared.length + split.length + replicated.length, ownership.tensors.length);
        const ranksShareHeads = worldSize > config.kvHeads;
        const keysAndValues = ownership.tensors.filter(({ tensor }) => /\.[kv]_proj\./.test(tensor)).length;
        assert.equal(shared.length, ranksShareHeads ? keysAndValues : 0);
        // Ranks hold together what there is, and what they share as often as they share it.
        const held = ownership.ranks.reduce((sum, { parameterBytes }) => sum + parameterBytes, 0);
        const alone = ownership.replicatedBytes.reduce((sum, bytes) => sum + bytes, 0);
        assert.ok(ownership.uniqueBytes <= held && held <= ownership.uniqueBytes + alone);
        assert.ok(ownership.imbalance >= 1 && ownership.imbalance < 1.6, `imbalance ${ownership.imbalance}`);
        // The embedding, two sums a layer, and the likeliest token.
        assert.equal(simulation.step().collectives.length, 1 + 2 * layers + 1);
      }
    });
  }

  it("knows what Llama 3.1 405B takes on 16 ranks", async () => {
    const { ownership, ranks } = await simulate({
      config: publishedConfig("llama-3.1-405b"),
      worldSize: 16,
      shapeOnly: true,
      maxModelLength: 131072,
      maxSequences: 1,
      kvCacheDtype: "bf16",
    });
    const [first] = ownership.ranks;
    // 128 query heads and 8 KV heads: 8 query heads a rank, every KV head on two ranks.
    assert.deepEqual(first?.queryHeads, { start: 0, end: 8 });
    assert.deepEqual(
      ownership.ranks.map(({ kvHeads }) => kvHeads?.start),
      [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7],
    );
    // 126 layers, keys and values, one head of 128 bf16, 131072 positions.
    assert.equal(first?.kvCacheBytes, 126 * 2 * 128 * 2 * 131072);
    assert.deepEqual(ranks[3]?.parameter("model.layers.125.mlp.gate_up_proj.weight").shape, [2 * (53248 / 16), 16384]);
    const gigabytes = ownership.ranks.map(({ parameterBytes }) => Math.round(parameterBytes / 1e9));
    assert.deepEqual(gigabytes, new Array(16).fill(51));
  });

  it("takes plugins: their layouts are partitioned, their indexers asked, nothing is prepared", async () => {
    const options = { worldSize: 8, plugins: [flatPlugin()], quantization: "flat" };
    const simulation = await simulate({ model: tiny("mistral"), shapeOnly: true, ...options });
    const values = await simulate({ model: tiny("mistral"), ...options });
    assert.deepEqual(simulation.indexerCalls, values.indexerCalls);
    expectIndexerCalls(simulation, { calls: values.indexerCalls });
    assert.deepEqual(simulation.ownership.tensors, values.ownership.tensors);
    const large = await simulate({ config: publishedConfig("qwen3-32b"), shapeOnly: true, ...options });
    expectOwnedOnce(large);
    await values.close();
  });

  it("says which ranks would run out of memory", async () => {
    const config = publishedConfig("qwen2.5-72b");
    const options = { config, shapeOnly: true, memoryLimitBytes: 24e9 } as const;
    await assert.rejects(simulate({ ...options, worldSize: 4 }), { code: "OUT_OF_MEMORY", message: /^rank 0: / });
    await simulate({ ...options, worldSize: 8 });
  });

  it("runs steps of the size it was made for", async () => {
    const simulation = await simulate({ config: manyHeads(8, 2), worldSize: 4, shapeOnly: true, maxSequences: 4 });
    const { tokens, sequences, collectives } = simulation.step({ tokens: 128, sequences: 4 });
    assert.deepEqual([tokens, sequences], [128, 4]);
    assert.deepEqual(collectives[0]?.bytes, new Array(4).fill(128 * 16 * 4));
    for (const wrong of [{ tokens: 129 }, { tokens: 0 }, { tokens: 2, sequences: 3 }, { tokens: 1.5 }]) {
      assert.throws(() => simulation.step(wrong), { code: "INVALID_OPTION" });
    }
    await simulation.close();
  });

  it("stays within 500 MB of memory for the largest model on the most ranks", function () {
    this.timeout(120_000);
    const simulator = new URL("../../src/testing/index.js", import.meta.url).href;
    for (const { name } of PUBLISHED) {
      // Not getrusage: its maximum is that of the process that forked this one, if that was larger.
      const script = `
        import { existsSync, readFileSync } from "node:fs";
        import { expectOwnedOnce, simulate } from ${JSON.stringify(simulator)};
        for (const worldSize of [2, 64]) {
          const simulation = await simulate({ config: ${JSON.stringify(publishedConfig(name))}, worldSize, shapeOnly: true });
          expectOwnedOnce(simulation);
          simulation.step();
        }
        const status = "/proc/self/status";
        const peak = existsSync(status) ? /VmHWM:\\s+(\\d+) kB/.exec(readFileSync(status, "utf8")) : null;
        console.log(peak === null ? process.memoryUsage.rss() : Number(peak[1]) * 1024);`;
      const { stdout, stderr, status } = spawnSync(process.execPath, ["--input-type=module", "--eval", script], {
        encoding: "utf8",
      });
      assert.equal(status, 0, stderr);
      assert.ok(Number(stdout) > 0 && Number(stdout) < 500 * MEGABYTE, `${name}: ${stdout} bytes`);
    }
  });
});
