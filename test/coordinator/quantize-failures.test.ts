import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { setConfig, setHeader } from "../cli/models.js";
import { fixture } from "../fixture.js";
import { hasCode, quantizationFolder } from "./quantized.js";

/** A tensor of one byte, which `read` computes. */
const madeOf = (read: string, more = ""): string =>
  `[{ name: weight.name, dtype: "u8", shape: [1], read() { ${read} }, ${more} }]`;
const planOf = (tensors: string): string => `{ settings: "{}", replace: (weight) => ${tensors} }`;

describe("quantizing that fails leaves nothing behind", () => {
  // Before the folder's own hook, which removes it.
  afterEach(() => assert.deepEqual(folder.results, []));
  const folder = quantizationFolder();

  for (const [name, tensor] of [
    ["nf4", "model.layers.0.mlp.down_proj.weight [16384, 1] u8"],
    ["nf4-storage-bf16", "u8"],
    ["int8", "model.layers.0.mlp.down_proj.weight [128, 256] i8"],
  ] as const) {
    it(`when the model is quantized already: ${name}`, async () => {
      await assert.rejects(
        folder.quantize({ model: `llama/${name}`, format: "nf4" }),
        hasCode("ALREADY_QUANTIZED", fixture(`tiny/llama/${name}`), tensor, '"bitsandbytes"'),
      );
    });
  }

  it("when it is quantized and its config.json does not say so", async () => {
    const model = folder.model("llama/nf4", (directory) => setConfig(directory, { quantization_config: undefined }));
    await assert.rejects(folder.quantize({ model, format: "nf4" }), hasCode("UNEXPECTED_TENSOR"));
  });

  it("when a tensor is missing", async () => {
    const model = folder.model("llama/bf16", (directory) =>
      setHeader(directory, (header) => {
        const entry = header["model.layers.1.mlp.up_proj.weight"];
        assert.ok(entry !== undefined);
        header["model.layers.0.self_attn.rotary_emb.inv_freq"] = entry;
        delete header["model.layers.1.mlp.up_proj.weight"];
        return undefined;
      }),
    );
    await assert.rejects(
      folder.quantize({ model, format: "nf4" }),
      hasCode("MISSING_TENSOR", "model.layers.1.mlp.up_proj.weight"),
    );
  });

  it("when a file of the model is missing", async () => {
    const model = folder.model("llama-uneven/bf16", (directory) => {
      rmSync(join(directory, "model-00002-of-00002.safetensors"));
    });
    await assert.rejects(folder.quantize({ model, format: "nf4" }), hasCode("MISSING_WEIGHT_FILE"));
  });

  it("when the architecture is not known", async () => {
    const model = folder.model("llama/bf16", (directory) =>
      setConfig(directory, { architectures: ["NoSuchForCausalLM"] }),
    );
    await assert.rejects(folder.quantize({ model, format: "nf4" }), hasCode("UNSUPPORTED_ARCHITECTURE", "NoSuch"));
  });

  it("when a weight holds what cannot be quantized, which is found in a thread", async () => {
    const name = "model.layers.1.mlp.up_proj.weight";
    const model = folder.model("llama/bf16", (directory) =>
      setHeader(directory, (header, data) => {
        data.writeUInt16LE(0x7f80, (header[name]?.data_offsets[0] ?? 0) + 200);
        return data;
      }),
    );
    await assert.rejects(folder.quantize({ model, format: "nf4" }), (error: Error) => {
      assert.equal(error.name, "CheckpointError");
      return hasCode("NON_FINITE_WEIGHT", name, "element 100 is Infinity")(error);
    });
  });

  for (const [format, options, code, ...words] of [
    ["int4", {}, "UNKNOWN_QUANTIZATION_FORMAT", "int4", "nf4, fp4, int8"],
    ["nf4", { blockSize: 48 }, "INVALID_OPTION", "blockSize", "power of two from 32 to 4096", "48"],
    ["nf4", { blockSize: 8192 }, "INVALID_OPTION", "blockSize"],
    ["nf4", { doubleQuant: "yes" }, "INVALID_OPTION", "doubleQuant"],
    ["int8", { doubleQuant: true }, "INVALID_OPTION", "doubleQuant", "int8"],
    ["int8", { blockSize: 64 }, "INVALID_OPTION", "blockSize", "int8"],
    ["nf4", { type: "fp4" }, "UNKNOWN_OPTION", "type"],
    ["nf4", { skipModules: "lm_head" }, "UNKNOWN_OPTION", "skipModules"],
  ] as const) {
    it(`when an option is wrong: ${format} with ${JSON.stringify(options)}`, async () => {
      await assert.rejects(folder.quantize({ model: "llama/bf16", format, options }), hasCode(code, ...words));
    });
  }

  it("when nothing is left to quantize, or a pattern matches nothing", async () => {
    const request = { model: "llama/bf16", format: "nf4" };
    await assert.rejects(folder.quantize({ ...request, skip: ["*"] }), hasCode("NOTHING_TO_QUANTIZE"));
    await assert.rejects(folder.quantize({ ...request, skip: ["down-proj"] }), hasCode("INVALID_OPTION", "down-proj"));
  });

  it("when the output is in the way of the model, or weights are to be made up", async () => {
    const model = folder.model("llama/bf16", () => {});
    const request = { model, format: "nf4", overwrite: true };
    await assert.rejects(folder.quantize({ ...request, out: model }), hasCode("INVALID_OUTPUT", model));
    await assert.rejects(folder.quantize({ ...request, loadFormat: "dummy" }), hasCode("INVALID_OPTION", "dummy"));
  });

  for (const [what, plan, code, ...words] of [
    ["throws while it plans", "(() => { throw new Error('no idea'); })()", "PLUGIN_FAILED", "test", "no idea"],
    ["throws while it is asked", planOf("{ throw new Error('no idea'); }"), "PLUGIN_FAILED", "test", "no idea"],
    [
      "throws while it is read, in a thread",
      planOf(madeOf("throw new Error('no idea');")),
      "PLUGIN_FAILED",
      "quantizing model.layers.",
      "no idea",
    ],
    ["ends the thread", planOf(madeOf("process.exit(3);")), "TASK_FAILED", "3"],
    [
      "names other tensors in the threads",
      "{ settings: '{}', replace: (weight) => [{ name: weight.name + Math.random(), dtype: 'u8', shape: [1], read() {} }] }",
      "INVALID_CHECKPOINT_QUANTIZER",
      "the same tensors",
    ],
    [
      "has settings that are no JSON object",
      `{ settings: "[]", replace: (weight) => ${madeOf("")} }`,
      "INVALID_CHECKPOINT_QUANTIZER",
      "settings",
    ],
    [
      "makes more of a deferred tensor than it said",
      planOf(madeOf("", "settledShape: () => [2]")),
      "INVALID_CHECKPOINT_QUANTIZER",
      "at most [1]",
    ],
  ] as const) {
    it(`when a plugin ${what}`, async () => {
      const plugins = [folder.plugin(plan)];
      await assert.rejects(folder.quantize({ model: "llama/bf16", format: "test", plugins }), hasCode(code, ...words));
    });
  }

  it("when it was given up before it began", async () => {
    const signal = AbortSignal.abort();
    await assert.rejects(folder.quantize({ model: "llama/bf16", format: "nf4", signal }), hasCode("CANCELLED"));
  });

  it("when it is given up while threads work, which are ended wherever they are", async () => {
    const forever = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)";
    // Of two threads, one copies tensors that are not quantized, and so goes on for a while.
    const plugins = [folder.plugin(planOf(`weight.name.includes("gate_proj") ? ${madeOf(forever)} : null`))];
    const controller = new AbortController();
    const quantizing = folder.quantize({
      model: "llama/bf16",
      format: "test",
      plugins,
      threads: 2,
      signal: controller.signal,
      onProgress: () => controller.abort(),
    });
    await assert.rejects(quantizing, hasCode("CANCELLED"));
  });

  it("when it cannot be written", async () => {
    const file = folder.write("file", "");
    const request = { model: "llama/bf16", format: "nf4" };
    await assert.rejects(folder.quantize({ ...request, out: join(file, "out") }), hasCode("INVALID_OUTPUT"));
    await assert.rejects(folder.quantize({ ...request, out: file }), hasCode("OUTPUT_EXISTS"));
    await assert.rejects(folder.quantize({ ...request, out: file, overwrite: true }), hasCode("INVALID_OUTPUT"));
  });
});
