import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import {
  type ModelLoader,
  PLUGIN_API_VERSION,
  type PluginContext,
  type QuantizationConfigFactory,
  ShardloomError,
} from "shardloom/plugin";
import { createGgufLoader, ggufQuantization, plugin } from "../src/index.js";
import { fixtureBytes, fixturePath } from "./fixture.js";
import { TestFolder } from "./gguf-builder.js";

const folder = new TestFolder();
after(() => folder.remove());

describe("the GGUF plugin", () => {
  it("registers one model loader and one quantization config, the same ones each time", () => {
    const loaders: ModelLoader[] = [];
    const configs: [string, QuantizationConfigFactory][] = [];
    const context: PluginContext = {
      registerModelLoader: (loader) => void loaders.push(loader),
      registerQuantizationConfig: (name, factory) => void configs.push([name, factory]),
      registerCheckpointQuantizer: () => assert.fail("it writes no checkpoints"),
    };
    plugin.register(context);
    plugin.register(context);
    assert.equal(loaders[0]?.format, "gguf");
    assert.equal(loaders[0], loaders[1], "registering twice has to be a no-op");
    assert.deepEqual(configs, [
      ["gguf", ggufQuantization],
      ["gguf", ggufQuantization],
    ]);
    assert.equal(plugin.apiVersion, PLUGIN_API_VERSION);
  });
});

describe("the GGUF loader", () => {
  const loader = createGgufLoader();
  const directory = (name: string, files: readonly string[]): string => {
    const path = join(folder.path, name);
    mkdirSync(path);
    for (const file of files) folder.write(join(name, file), fixtureBytes("formats.gguf"));
    return path;
  };

  it("recognizes a file by its name, so that it can say what is wrong with it, or by how it starts", () => {
    assert.equal(loader.matches(fixturePath("formats.gguf")), true);
    assert.equal(loader.matches(folder.write("MODEL.GGUF", Buffer.from("nothing"))), true);
    assert.equal(loader.matches(folder.write("blob", Buffer.from("GGUF...."))), true);
    assert.equal(loader.matches(folder.write("model.bin", Buffer.from("GG"))), false);
    assert.equal(loader.matches(join(folder.path, "missing.gguf")), false);
  });

  it("recognizes a directory with exactly one .gguf file and no safetensors", () => {
    assert.equal(loader.matches(directory("one", ["model.gguf", "README.md"])), true);
    assert.equal(loader.matches(directory("none", ["README.md"])), false);
    assert.equal(loader.matches(directory("two", ["a.gguf", "b.gguf"])), false);
    assert.equal(loader.matches(directory("both", ["a.gguf", "model.safetensors"])), false);
  });

  it("opens and describes the one file of a directory", async () => {
    const path = directory("single", ["model.gguf"]);
    const checkpoint = await loader.open(path);
    assert.equal(checkpoint.tensors.get("model.norm.weight")?.file, join(path, "model.gguf"));
    checkpoint.close();
    assert.equal((await loader.describe(path)).config["hidden_size"], 256);
  });

  it("reads the config without the vocabulary, and the same one", async () => {
    for (const name of ["model.gguf", "formats.gguf"]) {
      const path = fixturePath(name);
      assert.deepEqual(await loader.readConfig?.(path), (await loader.describe(path)).config, name);
    }
  });

  it("says which files it found where it needs one", async () => {
    const path = directory("several", ["a.gguf", "b.gguf"]);
    await assert.rejects(loader.open(path), /exactly one \.gguf file but received a\.gguf, b\.gguf/);
    await assert.rejects(loader.describe(directory("empty", [])), /exactly one \.gguf file but received none/);
  });

  it("says that a file is missing", async () => {
    await assert.rejects(loader.open(join(folder.path, "missing.gguf")), (error) => {
      assert.ok(error instanceof ShardloomError);
      assert.equal(error.code, "FILE_NOT_FOUND");
      return true;
    });
  });

  it("reports a file that becomes shorter after it was opened", async () => {
    const path = folder.write("shrinking.gguf", fixtureBytes("formats.gguf"));
    const checkpoint = await loader.open(path);
    folder.write("shrinking.gguf", fixtureBytes("formats.gguf").subarray(0, 2000));
    const tensor = checkpoint.tensors.get("model.layers.1.self_attn.v_proj.weight");
    assert.ok(tensor);
    assert.throws(() => tensor.read(new Uint8Array(4), 0), /shrinking\.gguf: expected 4 bytes/);
    checkpoint.close();
  });

  it("may be closed twice, and is not read after that", async () => {
    const checkpoint = await loader.open(fixturePath("formats.gguf"));
    checkpoint.close();
    checkpoint.close();
    const tensor = checkpoint.tensors.get("model.norm.weight");
    assert.throws(() => tensor?.read(new Uint8Array(4), 0), /after it was closed/);
  });
});
