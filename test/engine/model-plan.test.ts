import assert from "node:assert/strict";
import { copyFileSync, cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { launch, type ModelPlan, plan } from "../../src/index.js";
import { temporaryFolder } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";

const LLAMA = fixture("tiny/llama/bf16");
const LLAMA_405B = fixture("configs/llama-3.1-405b.json");

function codes({ problems }: ModelPlan): readonly string[] {
  return problems.map(({ code }) => code);
}

describe("the plan of a model", () => {
  const folder = temporaryFolder();

  for (const [model, worldSize, kvCacheDtype] of [
    [LLAMA, 1, "f32"],
    [LLAMA, 3, "f32"],
    [fixture("tiny/llama/nf4-dq"), 2, "f32"],
    [fixture("tiny/qwen3/bf16"), 4, "f32"],
    [fixture("tiny/llama/int8"), 3, "f32"],
    [LLAMA, 2, "int8"],
  ] as const) {
    const name = `${model.split("/tiny/")[1]} on ${worldSize}, cache of ${kvCacheDtype}`;
    it(`says the bytes that launched ranks then report: ${name}`, async () => {
      const plugins = ["@shardloom/bitsandbytes"];
      const sizes = { maxModelLength: 64, maxSequences: 2, tensorParallelSize: worldSize, kvCacheDtype, plugins };
      const made = await plan({ model, ...sizes });
      assert.deepEqual(made.problems, []);
      assert.equal(made.source, "headers");
      const engine = await launch({ model, ...sizes });
      try {
        for (const [rank, { parameterBytes, kvCacheBytes }] of engine.reports.entries()) {
          assert.equal(made.ranks[rank]?.kvCacheBytes, kvCacheBytes);
          // A format may add a table of its own, such as a codebook, when it has all weights.
          const added = parameterBytes - (made.ranks[rank]?.parameterBytes ?? 0);
          assert.ok(added >= 0 && added <= 16 * 4, `rank ${rank}: ${added} bytes more than planned`);
        }
      } finally {
        await engine.close();
      }
    });
  }

  it("of Llama-3.1-405B needs its config alone", async () => {
    const made = await plan({
      model: LLAMA_405B,
      tensorParallelSize: 8,
      maxModelLength: 8192,
      maxSequences: 4,
      kvCacheDtype: "bf16",
      memoryBytes: 2e12,
    });
    assert.deepEqual(made.problems, []);
    assert.equal(made.source, "config");
    // The published number of parameters, in bf16 but for the norms, which are f32.
    const norms = (2 * 126 + 1) * 16384;
    assert.equal(made.uniqueBytes, 405_853_388_800 * 2 + norms * 2);
    // Keys and values of 126 layers, 8 heads of 128, 4 sequences of 8192 tokens, 2 bytes each.
    const kvCache = made.ranks.reduce((sum, rank) => sum + rank.kvCacheBytes, 0);
    assert.equal(kvCache, 2 * 126 * 8 * 128 * 4 * 8192 * 2);
    const coded = await plan({
      model: LLAMA_405B,
      tensorParallelSize: 8,
      maxModelLength: 8192,
      maxSequences: 4,
      kvCacheDtype: "int8",
    });
    // A byte each, and four bytes of scale for 128 of them.
    const bytes = coded.ranks.reduce((sum, rank) => sum + rank.kvCacheBytes, 0);
    assert.equal(bytes, 2 * 126 * 8 * (128 + 4) * 4 * 8192);
    assert.deepEqual(made.ranks[3]?.queryHeads, { start: 48, end: 64 });
    assert.deepEqual(made.ranks[3]?.kvHeads, { start: 3, end: 4 });
    // Two all-reduces of a hidden state a layer, that of the embedding, and the likeliest ids.
    assert.equal(made.decode?.collectives, 2 * 126 + 2);
    const hidden = made.decode?.bytesByRank[0] ?? 0;
    assert.ok(hidden >= (2 * 126 + 1) * 16384 * 4 && hidden < (2 * 126 + 1) * 16384 * 4 + 1024);
    assert.deepEqual(
      made.replicated.map(({ tensors, count, holders }) => [tensors, count, holders]),
      [
        ["model.layers.*.input_layernorm.weight", 126, 8],
        ["model.layers.*.post_attention_layernorm.weight", 126, 8],
        ["model.norm.weight", 1, 8],
      ],
    );
  });

  it("counts what ranks exchange in the payload that they send", async () => {
    const sizes = { model: LLAMA, tensorParallelSize: 2 };
    const [whole, half] = [await plan(sizes), await plan({ ...sizes, collectivePayload: "bf16" })];
    const bytesOf = (made: ModelPlan): number => made.decode?.bytesByRank[0] ?? 0;
    // All but the likeliest ids are sums of hidden states: two a layer, and that of the embedding.
    const { layers = 0, hiddenSize = 0 } = whole.model ?? {};
    assert.equal(bytesOf(whole) - bytesOf(half), 2 * (2 * layers + 1) * hiddenSize);
  });

  it("says which layers are split unevenly, and how", async () => {
    const made = await plan({ model: fixture("configs/qwen2.5-72b.json"), tensorParallelSize: 3, memoryBytes: 1e12 });
    assert.deepEqual(made.problems, []);
    assert.deepEqual(made.uneven, [
      { layers: "model.layers.*.self_attn.qkv_proj", count: 80, split: "rows", sizes: [3840, 3840, 2560] },
      { layers: "model.layers.*.self_attn.o_proj", count: 80, split: "columns", sizes: [3072, 3072, 2048] },
    ]);
  });

  it("gives every reason why a model cannot be split, not just the first", async () => {
    const config = JSON.parse(readFileSync(join(LLAMA, "config.json"), "utf8"));
    const path = join(folder.path, "narrow.json");
    writeFileSync(path, JSON.stringify({ ...config, intermediate_size: 8, vocab_size: 20 }));
    const made = await plan({ model: path, tensorParallelSize: 32 });
    assert.deepEqual(codes(made), ["TOO_MANY_RANKS"]);
    for (const what of ["attention heads", "intermediate size", "vocabulary"]) {
      assert.match(made.problems[0]?.message ?? "", new RegExp(`${what}: expected at least 32`));
    }
    assert.deepEqual(made.ranks, []);
  });

  it("says that memory or context is too small, each with its numbers", async () => {
    const made = await plan({ model: LLAMA, memoryBytes: 1000, maxModelLength: 10_000_000 });
    assert.deepEqual(codes(made).toSorted(), ["CONTEXT_TOO_LONG", "OUT_OF_MEMORY"]);
    const [, memory] = made.problems;
    assert.match(memory?.message ?? "", /need \d+ bytes of memory, but there are 1000$/);
  });

  it("says when a KV cache is more than an engine takes without being told", async () => {
    const sizes = { model: LLAMA_405B, maxModelLength: 100_000, maxSequences: 64, memoryBytes: 1e13 };
    const made = await plan(sizes);
    const needed = made.ranks.reduce((sum, rank) => sum + rank.kvCacheBytes, 0);
    assert.match(made.notes.join(), new RegExp(`a KV cache of ${needed} bytes has to be asked for with kvCacheBytes`));
    assert.doesNotMatch((await plan({ ...sizes, kvCacheBytes: needed })).notes.join(), /asked for/);
  });

  it("holds the index to the model where the weight files are not there", async () => {
    const path = join(folder.path, "index-only");
    mkdirSync(path);
    copyFileSync(join(LLAMA, "config.json"), join(path, "config.json"));
    const whole = await plan({ model: path, tensorParallelSize: 2 });
    assert.deepEqual(whole.problems, []);
    assert.match(whole.notes.join(), /there are no weight files/);

    const index = { weight_map: { "model.embed_tokens.weight": "model-00001-of-00002.safetensors" } };
    writeFileSync(join(path, "model.safetensors.index.json"), JSON.stringify(index));
    const lacking = await plan({ model: path, tensorParallelSize: 2 });
    assert.deepEqual(codes(lacking), ["MISSING_TENSOR"]);
    assert.match(lacking.problems[0]?.message ?? "", /the index has no model\.layers\.0\.\S+ and lacks \d+ more/);
    assert.equal(lacking.ranks.length, 2, "what each rank would own is said all the same");
  });

  it("reports a file that is damaged, missing or of no known family as a problem", async () => {
    const path = join(folder.path, "damaged");
    cpSync(LLAMA, path, { recursive: true });
    const weights = join(path, "model.safetensors");
    writeFileSync(weights, readFileSync(weights).subarray(0, 100));
    assert.equal((await plan({ model: path })).problems.length, 1);
    rmSync(join(path, "config.json"));
    assert.deepEqual(codes(await plan({ model: path })), ["FILE_NOT_FOUND"]);
    writeFileSync(join(path, "config.json"), JSON.stringify({ architectures: ["NoSuchForCausalLM"] }));
    assert.deepEqual(codes(await plan({ model: path })), ["UNSUPPORTED_ARCHITECTURE"]);
  });

  it("gives every reason why a config cannot be used, not just the first", async () => {
    const config = JSON.parse(readFileSync(join(LLAMA, "config.json"), "utf8"));
    const path = join(folder.path, "wrong.json");
    const wrong = {
      hidden_act: "gelu",
      hidden_size: -128,
      vocab_size: "many",
      eos_token_id: [1, -2],
      tie_word_embeddings: 1,
      torch_dtype: "float8",
      rope_scaling: { rope_type: "yarn", factor: 4 },
      quantization_config: { quant_method: "nothing-like-that" },
    };
    writeFileSync(path, JSON.stringify({ ...config, head_dim: null, ...wrong }));
    const made = await plan({ model: path });
    const reasons = ["UNSUPPORTED_CONFIG", ...new Array(5).fill("INVALID_CONFIG"), "UNSUPPORTED_ROPE"];
    assert.deepEqual(codes(made).toSorted(), [...reasons, "UNKNOWN_QUANTIZATION"].toSorted());
    const messages = made.problems.map(({ message }) => message).join("\n");
    for (const key of Object.keys(wrong).slice(0, 6)) assert.match(messages, new RegExp(`\\b${key}\\b`));
    // What only follows from another mistake is not told: the size of heads comes from hidden_size.
    assert.doesNotMatch(messages, /head_dim/);
  });

  it("does not take weights for unquantized that are not here, where config.json says otherwise", async () => {
    const config = JSON.parse(readFileSync(join(LLAMA, "config.json"), "utf8"));
    const path = join(folder.path, "quantized.json");
    const planned = async (settings: object, method?: string): Promise<ModelPlan> => {
      writeFileSync(path, JSON.stringify({ ...config, quantization_config: settings }));
      return plan({ model: path, plugins: ["@shardloom/bitsandbytes"], quantization: method });
    };
    assert.deepEqual(codes(await planned({ quant_method: "unheard-of" })), ["UNKNOWN_QUANTIZATION"]);
    const settings = { quant_method: "bitsandbytes", load_in_4bit: true };
    assert.match((await planned(settings)).notes.join(), /quantized \(bitsandbytes\).* sizes are those of unquantized/);
    const sized = await planned(settings, "bitsandbytes");
    assert.deepEqual([sized.problems, sized.quantization], [[], "bitsandbytes"]);
    assert.ok((sized.uniqueBytes ?? 0) < 0.6 * ((await planned(settings)).uniqueBytes ?? 0));
  });

  it("refuses options that mean nothing, and a model that is nowhere", async () => {
    const refused = async (options: Parameters<typeof plan>[0], code: string): Promise<void> => {
      await assert.rejects(plan(options), (error: unknown) => {
        assert.ok(error instanceof Error && "code" in error);
        assert.equal(error.code, code);
        return true;
      });
    };
    await refused({ model: LLAMA, tensorParallelSize: 0 }, "INVALID_WORLD_SIZE");
    await refused({ model: LLAMA, memoryBytes: -1 }, "INVALID_OPTION");
    await refused({ model: LLAMA, blockSize: 0.5 }, "INVALID_OPTION");
    await refused({ model: join(folder.path, "nowhere") }, "MODEL_NOT_FOUND");
  });
});
