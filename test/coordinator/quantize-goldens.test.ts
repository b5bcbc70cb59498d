import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fixture } from "../fixture.js";
import { quantizationFolder, readJson, tensorsOf } from "./quantized.js";

interface Golden {
  readonly source: string;
  readonly golden: string;
  readonly format: string;
  readonly options?: { readonly doubleQuant: boolean };
  readonly skip?: readonly string[];
}

/** What transformers and bitsandbytes made of the same weights. */
const goldens: readonly Golden[] = [
  { source: "llama/bf16", golden: "llama/nf4", format: "nf4" },
  { source: "llama/bf16", golden: "llama/nf4-dq", format: "nf4", options: { doubleQuant: true } },
  { source: "llama/bf16", golden: "llama/fp4", format: "fp4" },
  { source: "llama/bf16", golden: "llama/int8", format: "int8" },
  { source: "llama-uneven/bf16", golden: "llama-uneven/nf4", format: "nf4" },
  {
    source: "llama-uneven/bf16",
    golden: "llama-uneven/nf4-skip",
    format: "nf4",
    skip: ["model.layers.0.mlp.down_proj"],
  },
  { source: "qwen2/bf16", golden: "qwen2/nf4", format: "nf4" },
  { source: "qwen3/bf16", golden: "qwen3/nf4", format: "nf4" },
  { source: "mistral/bf16", golden: "mistral/nf4", format: "nf4" },
  { source: "phi3/bf16", golden: "phi3/nf4", format: "nf4" },
];

/** A loader whose models are Hugging Face's, but with f32 weights, a tokenizer, and a quantization of its own. */
const WIDE_LOADER = `
import { readFileSync } from "node:fs";
import { SafetensorsFile } from ${JSON.stringify(new URL("../../src/checkpoint/safetensors.js", import.meta.url).href)};
const loader = {
  format: "wide",
  matches: (path) => path.endsWith(".safetensors"),
  describe: async (path) => ({
    config: {
      ...JSON.parse(readFileSync(path.replace("model.safetensors", "config.json"), "utf8")),
      quantization_config: { quant_method: "blocks" },
    },
    generationConfig: { eos_token_id: 7 },
    tokenizer: { tokenizer: { model: {} }, config: { model_max_length: 9 } },
    chatTemplate: "{{ messages }}",
  }),
  open: async (path) => {
    const file = SafetensorsFile.open(path);
    const widen = (tensor) => ({
      ...tensor,
      dtype: "f32",
      read(destination, byteOffset) {
        const patterns = new Uint16Array(destination.length / 4);
        tensor.read(new Uint8Array(patterns.buffer), byteOffset / 2);
        destination.set(new Uint8Array(Uint32Array.from(patterns, (bits) => bits << 16).buffer));
      },
    });
    const tensors = new Map([...file.tensors].map(([name, tensor]) => [name, widen(tensor)]));
    return { tensors, bytesRead: 0, close: () => file.close() };
  },
};
export const plugin = { name: "wide", apiVersion: 1, register: (context) => context.registerModelLoader(loader) };
`;

describe("quantized checkpoints, and those of transformers and bitsandbytes", () => {
  const folder = quantizationFolder();

  for (const { source, golden, format, options = {}, skip } of goldens) {
    it(`${golden}: are the same, tensor by tensor, and in config.json`, async () => {
      const { out, files } = await folder.quantize({ model: source, format, options, skip });
      const expected = fixture(`tiny/${golden}`);
      assert.deepEqual(tensorsOf(out), tensorsOf(expected));
      assert.deepEqual(readJson(out, "config.json"), readJson(expected, "config.json"));
      assert.deepEqual(readJson(out, "generation_config.json"), readJson(expected, "generation_config.json"));
      assert.deepEqual(files, ["model.safetensors"]);
      // With double quantization, sizes are not known before, and tensors lie in another order.
      if ("doubleQuant" in options) return;
      assert.ok(readFileSync(join(out, "model.safetensors")).equals(readFileSync(join(expected, "model.safetensors"))));
    });
  }

  it("keep the text of config.json, where 6.0 is not 6 to everybody", async () => {
    const { out } = await folder.quantize({ model: "llama/bf16", format: "int8" });
    const text = readFileSync(join(out, "config.json"), "utf8");
    assert.equal(text, readFileSync(fixture("tiny/llama/int8/config.json"), "utf8"));
    assert.match(text, /"llm_int8_threshold": 6\.0,/);
    assert.match(text, /"rope_theta": 10000\.0,/);
  });

  it("do not depend on the number of threads", async () => {
    const request = { model: "llama/bf16", format: "nf4", options: { doubleQuant: true } };
    const one = await folder.quantize({ ...request, threads: 1 });
    const three = await folder.quantize({ ...request, threads: 3, out: join(folder.path, "three") });
    for (const name of readdirSync(one.out)) {
      assert.ok(readFileSync(join(one.out, name)).equals(readFileSync(join(three.out, name))), name);
    }
  });

  it("come in several files with an index where they are too large for one", async () => {
    const { out, files, outputBytes } = await folder.quantize({
      model: "llama/bf16",
      format: "nf4",
      options: { doubleQuant: true },
      maxShardBytes: 40_000,
    });
    assert.ok(files.length > 4);
    assert.ok(files.every((name, i) => name === `model-0000${i + 1}-of-0000${files.length}.safetensors`));
    const index = readJson(out, "model.safetensors.index.json");
    assert.equal(index.metadata.total_size, outputBytes);
    // Opening them holds the index to the files.
    assert.deepEqual(tensorsOf(out), tensorsOf(fixture("tiny/llama/nf4-dq")));
    for (const file of files) {
      const names = Object.keys(index.weight_map).filter((name) => index.weight_map[name] === file);
      assert.ok(names.length > 0, `${file} is empty`);
    }
  });

  it("follow the user's options", async () => {
    const options = { blockSize: 128 };
    const { out } = await folder.quantize({ model: "llama/bf16", format: "fp4", options });
    const state = tensorsOf(out).get("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__fp4");
    assert.ok(Array.isArray(state));
    assert.equal(JSON.parse(Buffer.from(state[2], "base64").toString()).blocksize, 128);
  });

  it("may be of weights that a loader makes, converted first, whatever their config.json says of quantization", async () => {
    const report = await folder.quantize({
      model: fixture("tiny/llama/bf16/model.safetensors"),
      format: "nf4",
      dtype: "bf16",
      loadFormat: "wide",
      plugins: [folder.write("wide.mjs", WIDE_LOADER), "@shardloom/bitsandbytes"],
    });
    const { out } = report;
    const expected = fixture("tiny/llama/nf4");
    assert.ok(readFileSync(join(out, "model.safetensors")).equals(readFileSync(join(expected, "model.safetensors"))));
    assert.deepEqual(readJson(out, "config.json"), readJson(expected, "config.json"));
    assert.deepEqual(readJson(out, "generation_config.json"), { eos_token_id: 7 });
    assert.deepEqual(readJson(out, "tokenizer.json"), { model: {} });
    assert.deepEqual(readJson(out, "tokenizer_config.json"), { model_max_length: 9 });
    assert.equal(readFileSync(join(out, "chat_template.jinja"), "utf8"), "{{ messages }}");
  });

  it("say in config.json which dtype the weights were converted to, in the words that are there", async () => {
    const { out } = await folder.quantize({ model: "llama-uneven/bf16", format: "int8", dtype: "f16" });
    const config = readJson(out, "config.json");
    assert.equal(config.dtype, "float16");
    assert.equal("torch_dtype" in config, false);
    const dtypes = new Set([...tensorsOf(out).values()].map((tensor) => (Array.isArray(tensor) ? tensor[0] : "")));
    assert.deepEqual(dtypes, new Set(["f16", "i8", "f32", "u8"]));
  });

  it("bring the source's tokenizer and the like, but neither its weights nor their index", async () => {
    const model = folder.model("llama-uneven/bf16", (directory) => {
      for (const name of ["tokenizer.json", "LICENSE", "chat_template.jinja", "notes.pdf", ".hidden.json"]) {
        writeFileSync(join(directory, name), `content of ${name}`);
      }
      writeFileSync(join(directory, "tokenizer.json"), '{"a": 1.0}');
    });
    const { out } = await folder.quantize({ model, format: "nf4" });
    assert.deepEqual(readdirSync(out).sort(), [
      "LICENSE",
      "chat_template.jinja",
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
    ]);
    assert.equal(readFileSync(join(out, "tokenizer.json"), "utf8"), '{"a": 1.0}');
  });

  it("report what was done, and how far it has got, tensor by tensor", async () => {
    const seen: number[] = [];
    const report = await folder.quantize({
      model: "llama/bf16",
      format: "nf4",
      onProgress: ({ bytesDone, totalBytes }) => {
        assert.equal(totalBytes, 719_104);
        seen.push(bytesDone);
      },
    });
    assert.equal(seen.length, 20);
    assert.deepEqual(
      seen,
      seen.toSorted((a, b) => a - b),
    );
    assert.equal(seen.at(-1), 719_104);
    const { quantizedTensors, copiedTensors, sourceBytes } = report;
    assert.deepEqual([quantizedTensors, copiedTensors, sourceBytes], [14, 6, 719_104]);
  });
});
