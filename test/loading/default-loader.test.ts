import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import { checkpointError, temporaryFolder, vectorsBytes } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";

describe("the safetensors model loader", () => {
  const folder = temporaryFolder();

  it("describes what transformers wrote: config and generation config as they are, no tokenizer, no chat template", async () => {
    const path = fixture("tiny/llama-uneven/bf16");
    assert.deepEqual(await safetensorsLoader.readConfig?.(path), (await safetensorsLoader.describe(path)).config);
    assert.deepEqual(await safetensorsLoader.describe(path), {
      config: JSON.parse(readFileSync(join(path, "config.json"), "utf8")),
      generationConfig: JSON.parse(readFileSync(join(path, "generation_config.json"), "utf8")),
      tokenizer: null,
      chatTemplate: null,
    });
  });

  it("opens the checkpoint of a directory", async () => {
    const checkpoint = await safetensorsLoader.open(fixture("tiny/llama/bf16"));
    assert.deepEqual(checkpoint.tensors.get("model.embed_tokens.weight")?.shape, [500, 128]);
    checkpoint.close();
  });

  it("describes a directory with nothing but config.json", async () => {
    folder.write("config.json", '{"model_type":"llama"}');
    assert.deepEqual(await safetensorsLoader.describe(folder.path), {
      config: { model_type: "llama" },
      generationConfig: null,
      tokenizer: null,
      chatTemplate: null,
    });
  });

  it("demands config.json", async () => {
    await assert.rejects(safetensorsLoader.describe(folder.path), checkpointError("FILE_NOT_FOUND", /config\.json/));
  });

  for (const name of ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]) {
    it(`reports a damaged ${name} instead of passing over it`, async () => {
      folder.write("config.json", "{}");
      folder.write(name, '{"a":');
      await assert.rejects(safetensorsLoader.describe(folder.path), checkpointError("INVALID_JSON", new RegExp(name)));
    });
  }

  it("has a tokenizer only where both of its files are", async () => {
    folder.write("config.json", "{}");
    folder.write("tokenizer.json", '{"model":{}}');
    assert.equal((await safetensorsLoader.describe(folder.path)).tokenizer, null);
    folder.write("tokenizer_config.json", '{"bos_token":"<s>"}');
    const { tokenizer } = await safetensorsLoader.describe(folder.path);
    assert.deepEqual(tokenizer, { tokenizer: { model: {} }, config: { bos_token: "<s>" } });
  });

  const named = [
    { name: "tool_use", template: "tools" },
    { name: "default", template: "plain" },
  ];
  const templates: readonly (readonly [string, unknown, string | null])[] = [
    ["a string", "{{ x }}", "{{ x }}"],
    ["the default of a list", named, "plain"],
    ["none where a list has no default", [{ name: "rag", template: "r" }], null],
    ["none where it is null", null, null],
    ["none where there is none", undefined, null],
  ];
  for (const [what, chat_template, expected] of templates) {
    it(`takes the chat template from tokenizer_config.json: ${what}`, async () => {
      folder.write("config.json", "{}");
      folder.write("tokenizer_config.json", JSON.stringify({ chat_template }));
      assert.equal((await safetensorsLoader.describe(folder.path)).chatTemplate, expected);
    });
  }

  it("prefers chat_template.jinja", async () => {
    folder.write("config.json", "{}");
    folder.write("tokenizer_config.json", '{"chat_template":"old"}');
    folder.write("chat_template.jinja", "new {{ ü }}");
    assert.equal((await safetensorsLoader.describe(folder.path)).chatTemplate, "new {{ ü }}");
  });

  for (const chat_template of [3, {}, [{ name: "default" }], [{ name: "default", template: 1 }]]) {
    it(`refuses a chat template that is ${JSON.stringify(chat_template)}`, async () => {
      folder.write("config.json", "{}");
      folder.write("tokenizer_config.json", JSON.stringify({ chat_template }));
      await assert.rejects(safetensorsLoader.describe(folder.path), checkpointError("INVALID_CHAT_TEMPLATE"));
    });
  }

  it("recognizes safetensors files, an index, and pickled weights, of which it can say why not", () => {
    assert.equal(safetensorsLoader.matches(folder.path), false);
    for (const name of ["model.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"]) {
      assert.equal(safetensorsLoader.matches(fixtureOf(name)), true, name);
    }
    for (const name of ["model.gguf", "config.json", "training_state.bin"]) {
      assert.equal(safetensorsLoader.matches(fixtureOf(name)), false, name);
    }
    assert.equal(safetensorsLoader.matches(join(folder.path, "nowhere")), false);
  });

  it("says that it wants the directory where it is given a weight file", async () => {
    const file = folder.write("model.safetensors", vectorsBytes({ a: [1] }));
    assert.equal(safetensorsLoader.matches(file), true);
    const expected = checkpointError("NOT_A_DIRECTORY", /model's directory/);
    await assert.rejects(safetensorsLoader.describe(file), expected);
    await assert.rejects(safetensorsLoader.open(file), expected);
  });

  /** A directory with one file of a name. */
  function fixtureOf(name: string): string {
    folder.write(join(`of ${name}`, name), "");
    return join(folder.path, `of ${name}`);
  }
});
