import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { basename } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { dtypeBytes, tokenizerJson } from "shardloom/plugin";
import {
  type LayerContext,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  RowParallelLinear,
  scaleSplit,
  splitHeads,
  splitSize,
  VocabParallelEmbedding,
} from "shardloom/testing";
import { createGgufLoader } from "../src/index.js";
import { fixtureBytes } from "./fixture.js";
import { assertShard, load } from "./sharding.js";

interface SampleModelModule {
  sampleGguf(): Promise<string>;
}

/** Path of the sample model. Null where it cannot be fetched, unless this is CI: there it has to be. */
async function sampleModel(): Promise<string | null> {
  const url = new URL("../../../../scripts/sample-model.mjs", import.meta.url);
  const { sampleGguf }: SampleModelModule = await import(url.href);
  try {
    return await sampleGguf();
  } catch (error) {
    if (process.env["CI"] !== undefined) throw error;
    return null;
  }
}

/** The linear layers of the last block, and the embedding. */
function lastLayers(context: LayerContext): void {
  const { worldSize } = context;
  const [attention, mlp] = ["model.layers.29.self_attn", "model.layers.29.mlp"];
  const heads = splitHeads(9, 3, worldSize);
  const queryHeads = heads.map((own) => own.queryHeads);
  const intermediate = splitSize(1536, worldSize, "intermediate size");
  const vocabulary = splitSize(49_152, worldSize, "vocabulary");
  const projection = (prefix: string) => ({ prefix, outputSize: 1536, split: intermediate });
  new QKVParallelLinear(context, {
    prefix: `${attention}.qkv_proj`,
    names: { q: `${attention}.q_proj`, k: `${attention}.k_proj`, v: `${attention}.v_proj` },
    inputSize: 576,
    headSize: 64,
    totalHeads: 9,
    totalKvHeads: 3,
    heads,
  });
  const square = { inputSize: 576, outputSize: 576 };
  new RowParallelLinear(context, { prefix: `${attention}.o_proj`, ...square, split: scaleSplit(queryHeads, 64) });
  new MergedColumnParallelLinear(context, {
    prefix: `${mlp}.gate_up_proj`,
    inputSize: 576,
    parts: [projection(`${mlp}.gate_proj`), projection(`${mlp}.up_proj`)],
  });
  const down = { prefix: `${mlp}.down_proj`, inputSize: 1536, outputSize: 576, split: intermediate };
  new RowParallelLinear(context, down);
  const embedding = { prefix: "model.embed_tokens", vocabularySize: 49_152, hiddenSize: 576, vocabulary };
  new VocabParallelEmbedding(context, embedding);
}

describe("SmolLM2-135M-Instruct as a GGUF file", () => {
  let path = "";
  before(async function () {
    const fetched = await sampleModel();
    if (fetched === null) return this.skip();
    path = fetched;
  });

  it("has the tensors that the gguf package reads from it, to the last bit", async () => {
    const expected: unknown = JSON.parse(Buffer.from(fixtureBytes("sample-model.json")).toString());
    const checkpoint = await createGgufLoader().open(path);
    const lines = [...checkpoint.tensors.values()].map((tensor) => {
      const { name, dtype, shape } = tensor;
      const bytes = new Uint8Array(shape.reduce((product, extent) => product * extent, dtypeBytes(dtype)));
      tensor.read(bytes, 0);
      return `${name} ${dtype} ${shape.join("x")} ${createHash("sha256").update(bytes).digest("hex")}\n`;
    });
    checkpoint.close();
    const digest = createHash("sha256").update(lines.sort().join("")).digest("hex");
    assert.deepEqual({ file: basename(path), tensors: lines.length, sha256: digest }, expected);
  });

  it("is sharded to the last bit at its true size: 9 heads, 3 of them KV heads, over 1, 2 and 3 ranks", async () => {
    const checkpoint = await createGgufLoader().open(path);
    const wholes = new Map<string, Float32Array>();
    const wholeOf = (prefix: string): Float32Array => {
      const known = wholes.get(prefix);
      if (known !== undefined) return known;
      const tensor = checkpoint.tensors.get(`${prefix}.weight`) ?? assert.fail(prefix);
      const values = new Float32Array(tensor.shape.reduce((product, extent) => product * extent, 1));
      tensor.read(new Uint8Array(values.buffer), 0);
      wholes.set(prefix, values);
      return values;
    };
    for (const worldSize of [1, 2, 3]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const { linears } = load(checkpoint, { rank, worldSize }, lastLayers);
        assert.equal(linears.length, 5);
        for (const linear of linears) {
          assertShard(linear, `${linear.layer.prefix} on rank ${rank} of ${worldSize}`, wholeOf);
          assert.ok(linear.method.executionWeights().every(({ weight }) => weight.format !== "dense"));
        }
      }
    }
    checkpoint.close();
  });

  it("has the configuration that the model was published with", async () => {
    const { config, generationConfig } = await createGgufLoader().describe(path);
    const published = {
      hidden_size: 576,
      intermediate_size: 1536,
      num_hidden_layers: 30,
      num_attention_heads: 9,
      num_key_value_heads: 3,
      head_dim: 64,
      max_position_embeddings: 8192,
      rope_theta: 100_000,
      rope_scaling: null,
      rms_norm_eps: 1e-5,
      tie_word_embeddings: true,
      vocab_size: 49_152,
      bos_token_id: 1,
      eos_token_id: 2,
    };
    const received = Object.fromEntries(Object.keys(published).map((key) => [key, config[key]]));
    assert.deepEqual(received, published);
    assert.deepEqual(generationConfig, { bos_token_id: 1, eos_token_id: 2, pad_token_id: 2 });
  });

  it("has a tokenizer that cuts a chat as the published one does", async () => {
    const { tokenizer, chatTemplate } = await createGgufLoader().describe(path);
    assert.ok(tokenizer !== null && chatTemplate !== null);
    const { ids } = new Tokenizer(tokenizerJson(tokenizer), tokenizer.config).encode(
      "<|im_start|>user\nHello 123<|im_end|>\n",
    );
    assert.deepEqual(ids, [1, 4093, 198, 19556, 216, 33, 34, 35, 2, 198]);
    assert.match(chatTemplate, /You are a helpful AI assistant named SmolLM/);
  });
});
