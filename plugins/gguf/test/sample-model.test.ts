import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { basename } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { dtypeBytes } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { fixtureBytes } from "./fixture.js";

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
    const { ids } = new Tokenizer(tokenizer.tokenizer, tokenizer.config).encode(
      "<|im_start|>user\nHello 123<|im_end|>\n",
    );
    assert.deepEqual(ids, [1, 4093, 198, 19556, 216, 33, 34, 35, 2, 198]);
    assert.match(chatTemplate, /You are a helpful AI assistant named SmolLM/);
  });
});
