import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import type { FloatDType } from "../../src/core/dtype.js";
import { convertFloats, dtypeBytes } from "../../src/core/dtype.js";
import { elementCount } from "../../src/core/tensor.js";
import { launch } from "../../src/index.js";
import { dummyCheckpoint, dummyLoader } from "../../src/loading/dummy-loader.js";
import { selectFamily } from "../../src/models/registry.js";
import { expectedTensors } from "../../src/rank/expected-weights.js";
import { checkpointError, temporaryFolder } from "../checkpoint/files.js";
import { hubEnvironment } from "../checkpoint/hub-environment.js";
import { fixture } from "../fixture.js";

const MATRIX = "model.layers.0.mlp.down_proj.weight";

/** The f32 values of a made-up tensor. */
function valuesOf(name: string, shape: readonly number[], seed = 0, dtype: FloatDType = "bf16"): Float32Array {
  const checkpoint = dummyCheckpoint({ config: {}, seed, tensors: () => [{ name, dtype, shape }] });
  const bytes = new Uint8Array(elementCount(shape) * dtypeBytes(dtype));
  checkpoint.tensors.get(name)?.read(bytes, 0);
  const values = new Float32Array(elementCount(shape));
  convertFloats(bytes, dtype, new Uint8Array(values.buffer), "f32", name);
  return values;
}

describe("dummy weights", () => {
  const folder = temporaryFolder();

  for (const model of ["llama", "llama-uneven", "mistral", "qwen2", "qwen3"]) {
    it(`have the names, dtypes and shapes of the checkpoint that transformers wrote: ${model}`, async () => {
      const { config } = await dummyLoader.describe(fixture(`tiny/${model}/bf16`));
      const expected = expectedTensors(selectFamily(config), config);
      const checkpoint = SafetensorsDirectory.open(fixture(`tiny/${model}/bf16`));
      const onDisk = [...checkpoint.tensors.values()].map(({ name, dtype, shape }) => ({ name, dtype, shape }));
      checkpoint.close();
      const byName = (a: { readonly name: string }, b: { readonly name: string }) => a.name.localeCompare(b.name);
      assert.deepEqual(expected.toSorted(byName), onDisk.toSorted(byName));
    });
  }

  it("depend on seed and name alone, and all bytes can be read from anywhere", () => {
    const shape = [37, 24];
    assert.deepEqual(valuesOf(MATRIX, shape, 5), valuesOf(MATRIX, shape, 5));
    assert.notDeepEqual(valuesOf(MATRIX, shape, 5), valuesOf(MATRIX, shape, 6));
    assert.notDeepEqual(valuesOf(MATRIX, shape, 5), valuesOf("lm_head.weight", shape, 5));
    for (const dtype of ["f32", "bf16", "f16"] as const) {
      const { tensors } = dummyCheckpoint({ config: {}, seed: 5, tensors: () => [{ name: MATRIX, dtype, shape }] });
      const tensor = tensors.get(MATRIX) ?? assert.fail();
      const whole = new Uint8Array(elementCount(shape) * dtypeBytes(dtype));
      tensor.read(whole, 0);
      fc.assert(
        fc.property(fc.nat(whole.length), fc.nat(whole.length), (a, b) => {
          const [start, end] = [Math.min(a, b), Math.max(a, b)];
          const part = new Uint8Array(end - start);
          tensor.read(part, start);
          assert.deepEqual(part, whole.subarray(start, end));
        }),
      );
      assert.throws(() => tensor.read(new Uint8Array(2), whole.length - 1), RangeError);
    }
  });

  it("are the same numbers in every float dtype: none of them rounds", () => {
    for (const [name, shape] of [
      [MATRIX, [16, 4864]],
      ["model.norm.weight", [300]],
      ["model.layers.0.self_attn.q_proj.bias", [300]],
    ] as const) {
      const values = valuesOf(name, shape, 1, "f32");
      assert.deepEqual(valuesOf(name, shape, 1, "bf16"), values, name);
      assert.deepEqual(valuesOf(name, shape, 1, "f16"), values, name);
    }
  });

  it("keep activations in size: matrices have unit gain, norms are near 1, biases near 0", () => {
    const columns = 512;
    const matrix = valuesOf(MATRIX, [256, columns]);
    const mean = matrix.reduce((sum, value) => sum + value, 0) / matrix.length;
    const variance = matrix.reduce((sum, value) => sum + value * value, 0) / matrix.length;
    assert.ok(Math.abs(mean) < 1e-3, `mean ${mean}`);
    const gain = Math.sqrt(variance * columns);
    assert.ok(gain > 0.7 && gain < 1.42, `gain ${gain}`);
    assert.ok(valuesOf("model.norm.weight", [512]).every((value) => value >= 0.75 && value < 1.25));
    assert.ok(valuesOf("a.q_proj.bias", [512]).every((value) => Math.abs(value) < 0.07));
  });

  it("need a config alone; quantization_config, which says how weights are stored, does not apply to them", async () => {
    const config = { architectures: ["LlamaForCausalLM"], quantization_config: { quant_method: "bitsandbytes" } };
    const file = folder.write("config.json", JSON.stringify(config));
    const expected = {
      config: { architectures: ["LlamaForCausalLM"] },
      generationConfig: null,
      tokenizer: null,
      chatTemplate: null,
    };
    assert.deepEqual(await dummyLoader.describe(file), expected);
    assert.deepEqual(await dummyLoader.describe(folder.path), expected);
    await assert.rejects(dummyLoader.describe(`${folder.path}/none`), checkpointError("FILE_NOT_FOUND"));
    assert.equal(dummyLoader.matches(folder.path), false, "never chosen unless asked for");
  });

  describe("of a hub repository", () => {
    const at = hubEnvironment();

    it("need no weights to be downloaded", async () => {
      const config = readFileSync(join(fixture("tiny/llama/bf16"), "config.json"));
      at.hub.commit({ "config.json": config, "model.safetensors": new Uint8Array(64) });
      const engine = await launch({ model: "org/tiny", loadFormat: "dummy", logLevel: "error" });
      await engine.close();
      assert.deepEqual(at.hub.downloaded, ["config.json"]);
    });
  });

  it("run on worker threads, the same tokens on one rank and on three", async () => {
    const answers: number[][] = [];
    for (const tensorParallelSize of [1, 3]) {
      const engine = await launch({
        model: fixture("tiny/mistral/bf16"),
        loadFormat: "dummy",
        tensorParallelSize,
        logLevel: "error",
      });
      const tokenIds: number[] = [];
      for await (const delta of engine.generate({ promptTokenIds: [1, 2, 3], sampling: { maxTokens: 6 } })) {
        tokenIds.push(...delta.tokenIds);
      }
      assert.deepEqual(
        engine.reports.map(({ bytesRead }) => bytesRead),
        new Array(tensorParallelSize).fill(0),
      );
      await engine.close();
      answers.push(tokenIds);
    }
    assert.equal(answers[0]?.length, 6);
    assert.deepEqual(answers[0], answers[1]);
  });
});
