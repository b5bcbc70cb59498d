import assert from "node:assert/strict";
import { type JsonObject, ShardloomError } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { fixtureBytes } from "./fixture.js";
import {
  type Bytes,
  f32,
  gguf,
  i32s,
  llamaPairs,
  string,
  type TensorFields,
  TestFolder,
  u32,
  u64,
} from "./gguf-builder.js";

const folder = new TestFolder();
after(() => folder.remove());

interface Extra {
  readonly pairs?: Readonly<Record<string, Bytes | null>>;
  readonly tensors?: readonly TensorFields[];
  readonly data?: Uint8Array;
}

async function configOf({ pairs = {}, tensors = [], data = new Uint8Array(4096) }: Extra): Promise<JsonObject> {
  const path = folder.write("config.gguf", gguf({ pairs: llamaPairs(pairs), tensors, data }));
  return (await createGgufLoader().describe(path)).config;
}

/** A tensor of F32 (0), F16 (1), BF16 (30), Q8_0 (8); its own 256 bytes of the data. */
function tensor(name: string, dimensions: readonly number[], type: number, slot = 0): TensorFields {
  return { name, dimensions, type, offset: slot * 256 };
}

async function rejectsWith(extra: Extra, code: string, message: RegExp): Promise<void> {
  await assert.rejects(configOf(extra), (error) => {
    assert.ok(error instanceof ShardloomError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

describe("config.json made from GGUF metadata", () => {
  it("says what the metadata says, and what a llama is where it is silent", async () => {
    assert.deepEqual(await configOf({}), {
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      hidden_act: "silu",
      hidden_size: 32,
      intermediate_size: 64,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 8,
      max_position_embeddings: 128,
      rope_theta: 10_000,
      rope_scaling: null,
      rms_norm_eps: 1e-5,
      attention_bias: false,
      mlp_bias: false,
      tie_word_embeddings: true,
      vocab_size: 10,
      bos_token_id: null,
      eos_token_id: null,
      pad_token_id: null,
      torch_dtype: "float32",
    });
  });

  it("takes the number of key-value heads for that of the heads where only those are given", async () => {
    const config = await configOf({ pairs: { "llama.attention.head_count_kv": null } });
    assert.equal(config["num_key_value_heads"], 4);
  });

  it("takes a count that is given for every layer when the layers agree", async () => {
    const pairs = { "llama.attention.head_count": i32s([4, 4]), "llama.feed_forward_length": i32s([64, 64]) };
    const config = await configOf({ pairs });
    assert.deepEqual([config["num_attention_heads"], config["intermediate_size"]], [4, 64]);
    const uneven = { pairs: { "llama.attention.head_count": i32s([4, 2]) } };
    await rejectsWith(uneven, "INVALID_METADATA", /llama.attention.head_count .*every layer/);
  });

  it("has a head of the output where the file has one, and biases where the file has them", async () => {
    const config = await configOf({
      tensors: [
        tensor("output.weight", [32, 1], 0, 0),
        tensor("blk.0.attn_q.bias", [32], 0, 1),
        tensor("blk.0.ffn_up.bias", [32], 0, 2),
      ],
    });
    assert.deepEqual(
      [config["tie_word_embeddings"], config["attention_bias"], config["mlp_bias"]],
      [false, true, true],
    );
  });

  it("counts the vocabulary by the embedding where no key does", async () => {
    const pairs = { "llama.vocab_size": null };
    assert.equal((await configOf({ pairs, tensors: [tensor("token_embd.weight", [32, 7], 8)] }))["vocab_size"], 7);
    await rejectsWith({ pairs }, "INVALID_METADATA", /tokenizer.ggml.tokens to be there/);
  });

  it("names the narrowest dtype that holds every plainly stored matrix as it is, which those in blocks are not", async () => {
    const dtypeOf = async (...types: number[]): Promise<unknown> => {
      const names = ["blk.0.ffn_up.weight", "blk.0.ffn_down.weight"];
      const tensors = types.map((type, i) => tensor(names[i] ?? "", [32, 1], type, i + 1));
      return (await configOf({ tensors: [tensor("output_norm.weight", [32], 0), ...tensors] }))["torch_dtype"];
    };
    const [F32, F16, Q8_0, BF16] = [0, 1, 8, 30];
    const cases: readonly (readonly [number, number, string])[] = [
      [F32, F32, "float32"],
      [F16, F16, "float16"],
      [BF16, BF16, "bfloat16"],
      [F16, BF16, "float32"],
      [F32, F16, "float32"],
      [Q8_0, F16, "float16"],
      [BF16, Q8_0, "bfloat16"],
      [Q8_0, Q8_0, "float32"],
    ];
    for (const [first, second, dtype] of cases) assert.equal(await dtypeOf(first, second), dtype);
  });

  it("states that weights are quantized where some are, and nothing where none are", async () => {
    const quantizationOf = async (type: number): Promise<unknown> => {
      return (await configOf({ tensors: [tensor("blk.0.ffn_up.weight", [32, 1], type)] }))["quantization_config"];
    };
    assert.deepEqual(await quantizationOf(8), { quant_method: "gguf" });
    assert.equal(await quantizationOf(1), undefined);
  });

  it("names every token that ends an answer, once", async () => {
    const ids = { "tokenizer.ggml.bos_token_id": u32(1), "tokenizer.ggml.padding_token_id": u32(0) };
    const one = await configOf({ pairs: { ...ids, "tokenizer.ggml.eos_token_id": u32(2) } });
    assert.deepEqual([one["bos_token_id"], one["eos_token_id"], one["pad_token_id"]], [1, 2, 0]);
    const turns = { "tokenizer.ggml.eos_token_id": u32(2), "tokenizer.ggml.eot_token_id": u32(3) };
    const many = await configOf({ pairs: { ...turns, "tokenizer.ggml.eom_token_id": u32(2) } });
    assert.deepEqual(many["eos_token_id"], [2, 3]);
  });

  it("writes decimals as they were before they became binary32", async () => {
    const config = await configOf({
      pairs: { "llama.attention.layer_norm_rms_epsilon": f32(1e-6), "llama.rope.freq_base": f32(130_000.5) },
    });
    assert.deepEqual([config["rms_norm_eps"], config["rope_theta"]], [1e-6, 130_000.5]);
  });

  const wrong: readonly (readonly [string, Readonly<Record<string, Bytes | null>>, string, RegExp])[] = [
    ["no architecture", { "general.architecture": null }, "INVALID_METADATA", /general.architecture to be there/],
    [
      "an architecture that is no string",
      { "general.architecture": u32(1) },
      "INVALID_METADATA",
      /a string but received 1/,
    ],
    [
      "another architecture",
      { "general.architecture": string("mamba") },
      "UNSUPPORTED_ARCHITECTURE",
      /llama but received mamba/,
    ],
    ["an adapter", { "general.type": string("adapter") }, "UNSUPPORTED_ARCHITECTURE", /model but received adapter/],
    [
      "a part of a split model",
      { "split.count": u32(3) },
      "UNSUPPORTED_ARCHITECTURE",
      /split.count.*--merge.*received 3/,
    ],
    ["experts", { "llama.expert_count": u32(8) }, "UNSUPPORTED_ARCHITECTURE", /without experts/],
    ["no hidden size", { "llama.embedding_length": null }, "INVALID_METADATA", /embedding_length to be there/],
    ["a hidden size of 0", { "llama.embedding_length": u32(0) }, "INVALID_METADATA", /from 1 to/],
    [
      "a hidden size of 2^64 - 1",
      { "llama.embedding_length": u64(2n ** 64n - 1n) },
      "INVALID_METADATA",
      /18446744073709551615/,
    ],
    [
      "a hidden size that is no whole number",
      { "llama.embedding_length": f32(0.5) },
      "INVALID_METADATA",
      /whole number/,
    ],
    [
      "heads that do not divide the hidden size",
      { "llama.attention.head_count": u32(5) },
      "INVALID_METADATA",
      /multiple of 5 heads/,
    ],
    [
      "an epsilon that is no number",
      { "llama.attention.layer_norm_rms_epsilon": f32(Number.NaN) },
      "INVALID_METADATA",
      /finite/,
    ],
    [
      "values of another size than keys",
      { "llama.attention.value_length": u32(4) },
      "UNSUPPORTED_CONFIG",
      /value_length.*size 8.*received 4/,
    ],
    ["half of a head rotated", { "llama.rope.dimension_count": u32(4) }, "UNSUPPORTED_CONFIG", /dimension_count/],
    ["a rope scaling of another kind", { "llama.rope.scaling.type": string("yarn") }, "UNSUPPORTED_ROPE", /yarn/],
  ];
  for (const [title, pairs, code, message] of wrong) {
    it(`is not made with ${title}: ${code}`, () => rejectsWith({ pairs }, code, message));
  }
});

describe("rope scaling made from GGUF metadata", () => {
  const scalingOf = async (extra: Extra): Promise<unknown> => (await configOf(extra))["rope_scaling"];
  const factorOf = (factor: number): Readonly<Record<string, Bytes>> => ({
    "llama.rope.scaling.type": string("linear"),
    "llama.rope.scaling.factor": f32(factor),
  });

  it("is linear by the new key and the old one, and none by a factor of 1", async () => {
    assert.deepEqual(await scalingOf({ pairs: factorOf(4) }), { rope_type: "linear", factor: 4 });
    assert.deepEqual(await scalingOf({ pairs: { "llama.rope.scale_linear": f32(2) } }), {
      rope_type: "linear",
      factor: 2,
    });
    assert.equal(await scalingOf({ pairs: factorOf(1) }), null);
    assert.equal(await scalingOf({ pairs: { "llama.rope.scaling.type": string("none") } }), null);
    await rejectsWith({ pairs: factorOf(-2) }, "INVALID_METADATA", /positive but received -2/);
  });

  interface Rope {
    readonly headSize: number;
    readonly theta: number;
    readonly factor: number;
    readonly divisors: readonly number[];
  }
  const ropes: Readonly<Record<string, Rope>> = JSON.parse(Buffer.from(fixtureBytes("rope.json")).toString());

  function withDivisors({ headSize, theta, divisors }: Rope, pairs: Readonly<Record<string, Bytes>> = {}): Extra {
    return {
      pairs: { "llama.embedding_length": u32(4 * headSize), "llama.rope.freq_base": f32(theta), ...pairs },
      tensors: [tensor("rope_freqs.weight", [divisors.length], 0)],
      data: new Uint8Array(new Float32Array(divisors).buffer),
    };
  }

  for (const [model, rope] of Object.entries(ropes)) {
    it(`is taken back from the divisors of ${model}`, async () => {
      assert.deepEqual(await scalingOf(withDivisors(rope)), {
        rope_type: "llama3",
        factor: rope.factor,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 8192,
      });
    });

    it(`is an error for divisors that are nearly those of ${model}`, async () => {
      const { divisors } = rope;
      const others = divisors.map((divisor, at) => divisors.map((each, i) => (i === at ? divisor * 1.001 : each)));
      for (const changed of [...others.slice(0, -1), divisors.slice(1), [...divisors, rope.factor]]) {
        await rejectsWith(withDivisors({ ...rope, divisors: changed }), "UNSUPPORTED_ROPE", /rope_freqs.weight/);
      }
    });
  }

  const [rope] = Object.values(ropes);
  assert.ok(rope);

  it("is none for divisors of 1", async () => {
    assert.equal(await scalingOf(withDivisors({ ...rope, divisors: Array(rope.headSize / 2).fill(1) })), null);
  });

  it("is an error for divisors that no scaling gives, and for two scalings at once", async () => {
    for (const value of [2, 0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      const divisors = Array(rope.headSize / 2).fill(value);
      await rejectsWith(withDivisors({ ...rope, divisors }), "UNSUPPORTED_ROPE", /rope_freqs.weight/);
    }
    await rejectsWith(withDivisors(rope, factorOf(2)), "UNSUPPORTED_ROPE", /both/);
  });

  it("is an error for divisors of another type or shape", async () => {
    const half = { tensors: [tensor("rope_freqs.weight", [32], 1)] };
    await rejectsWith(half, "SHAPE_MISMATCH", /F32 but received \[32\] of type F16/);
    const matrix = { tensors: [tensor("rope_freqs.weight", [4, 2], 0)] };
    await rejectsWith(matrix, "SHAPE_MISMATCH", /\[2, 4\]/);
  });

  it("does not make the divisors a weight", async () => {
    const { pairs = {}, tensors = [], data = new Uint8Array() } = withDivisors(rope);
    const path = folder.write("rope.gguf", gguf({ pairs: llamaPairs(pairs), tensors, data }));
    const checkpoint = await createGgufLoader().open(path);
    assert.equal(checkpoint.tensors.size, 0);
    checkpoint.close();
  });
});
