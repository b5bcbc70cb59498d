import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  type Checkpoint,
  dequantize,
  InternalError,
  type JsonObject,
  type LinearLayer,
  type PluginContext,
} from "shardloom/plugin";
import { checkpointOf, loadLayers } from "shardloom/testing";
import { plugin, SKIP_LIST_WARNING } from "../src/index.js";
import { compareSkips, skips } from "../src/skip-modules.js";
import {
  bytesOfTensor,
  hasCode,
  inFlightConfig,
  memoryTensor,
  openFixture,
  randomValues,
  storedConfig,
  storeFourBit,
  storeInt8,
} from "./fixture.js";
import { column, expectShards, loadRanks, merged, row, splitAt } from "./layer-fixture.js";

describe("the plugin", () => {
  it("registers one quantization config and three checkpoint quantizers, the same each time", () => {
    const registered: [string, unknown][] = [];
    const context: PluginContext = {
      registerModelLoader: () => assert.fail("it brings no loader"),
      registerQuantizationConfig: (name, factory) => void registered.push([name, factory]),
      registerCheckpointQuantizer: (format, quantizer) => void registered.push([format, quantizer]),
    };
    plugin.register(context);
    const first = registered.splice(0);
    plugin.register(context);
    assert.equal(plugin.apiVersion, 1);
    assert.deepEqual(
      first.map(([name]) => name),
      ["bitsandbytes", "nf4", "fp4", "int8"],
    );
    registered.forEach(([name, object], i) => {
      assert.equal(name, first[i]?.[0]);
      assert.equal(object, first[i]?.[1]);
    });
    assert.equal(registered.length, first.length);
  });
});

describe("options", () => {
  const empty = checkpointOf([]);
  const int8 = checkpointOf(storeInt8("X", [2, 4], randomValues(8, 1)));

  it("of a user who quantizes: wrong values and keys are named", () => {
    const wrong: [JsonObject, string, string][] = [
      [{ type: "int4" }, "INVALID_OPTION", "type"],
      [{ blockSize: 48 }, "INVALID_OPTION", "blockSize"],
      [{ blockSize: 16 }, "INVALID_OPTION", "blockSize"],
      [{ blockSize: 8192 }, "INVALID_OPTION", "blockSize"],
      [{ blockSize: "64" }, "INVALID_OPTION", "blockSize"],
      [{ doubleQuant: 1 }, "INVALID_OPTION", "doubleQuant"],
      [{ skipModules: "lm_head" }, "INVALID_OPTION", "skipModules"],
      [{ skipModules: [1] }, "INVALID_OPTION", "skipModules"],
      [{ type: "int8", blockSize: 64 }, "INVALID_OPTION", "blockSize"],
      [{ type: "int8", doubleQuant: true }, "INVALID_OPTION", "doubleQuant"],
      [{ type: "int8", int8Activations: "yes" }, "INVALID_OPTION", "int8Activations"],
      [{ type: "int8", outlierThreshold: -1 }, "INVALID_OPTION", "outlierThreshold"],
      [{ type: "nf4", int8Activations: true }, "INVALID_OPTION", "int8Activations"],
      [{ blocksize: 64 }, "UNKNOWN_OPTION", "blocksize"],
    ];
    for (const [options, code, option] of wrong) {
      assert.throws(
        () => inFlightConfig(empty, options),
        (error: unknown) => hasCode(code)(error) && Object(error).details.option === option,
        JSON.stringify(options),
      );
    }
    for (const options of [
      {},
      { type: "fp4", blockSize: 4096, doubleQuant: true },
      { type: "int8", int8Activations: true, outlierThreshold: 0 },
    ]) {
      assert.doesNotThrow(() => inFlightConfig(empty, options));
    }
  });

  it("of a checkpoint that is quantized: how to quantize it is no question", () => {
    assert.throws(() => storedConfig(int8, { type: "nf4" }), hasCode("UNKNOWN_OPTION"));
    assert.throws(() => storedConfig(empty, { int8Activations: true }), hasCode("INVALID_OPTION"));
    assert.doesNotThrow(() => storedConfig(int8, { int8Activations: true, outlierThreshold: 5 }));
  });

  it("in config.json: what it says of itself must make sense", () => {
    const wrong: JsonObject[] = [
      { load_in_4bit: true, load_in_8bit: true },
      { load_in_4bit: "yes" },
      { llm_int8_threshold: "6" },
      { llm_int8_threshold: -6 },
      { llm_int8_skip_modules: "lm_head" },
      { llm_int8_skip_modules: [null] },
    ];
    for (const settings of wrong)
      assert.throws(() => storedConfig(int8, {}, settings), hasCode("INVALID_CONFIG"), JSON.stringify(settings));
    const nulls = { load_in_4bit: null, load_in_8bit: null, llm_int8_threshold: null, llm_int8_skip_modules: null };
    assert.doesNotThrow(() => storedConfig(int8, {}, nulls));
  });
});

describe("skip lists", () => {
  it("mean a whole component of a name, a dotted prefix, or all of it", () => {
    const module = "model.layers.1.mlp.down_proj";
    for (const entry of ["down_proj", "mlp", "model.layers.1", module, "1"]) assert.ok(skips([entry], module), entry);
    for (const entry of ["proj", "down", "model.layers", "layers.1", "model.layers.11", "", "mlp.down_proj"]) {
      assert.equal(skips([entry], module), entry === "model.layers", entry);
    }
  });

  it("are compared with what is quantized", () => {
    assert.equal(compareSkips(["lm_head"], ["a.q_proj"], ["lm_head"]), null);
    assert.equal(compareSkips(null, ["a.q_proj", "lm_head"], []), null, "a head may be quantized without a list");
    assert.equal(compareSkips(null, [], ["lm_head"]), null);
    assert.match(
      compareSkips(["a"], ["a.q_proj", "b.q_proj"], []) ?? "",
      /in llm_int8_skip_modules but quantized: a\.q_proj$/,
    );
    const many = ["c.1", "c.2", "c.3", "c.4", "c.5"];
    assert.match(compareSkips(null, [], many) ?? "", /not quantized: c\.1, c\.2, c\.3 and 2 more$/);
  });

  it("that disagree with the tensors are warned of, once for all ranks; the tensors decide", async () => {
    const tensors = [
      ...storeFourBit("a", [4, 64], randomValues(256, 1)),
      memoryTensor("b.weight", "f32", [4, 64], randomValues(256, 2)),
    ];
    const warnings: (Error & { code?: string })[] = [];
    const listen = (warning: Error): void => void warnings.push(warning);
    process.on("warning", listen);
    try {
      const settings = { llm_int8_skip_modules: ["a"] };
      const split = splitAt(4, 2);
      const config = (checkpoint: Checkpoint) => storedConfig(checkpoint, {}, settings);
      const ranks = loadRanks(2, checkpointOf(tensors), config, column("a", 4, 64, split), column("b", 4, 64, split));
      assert.deepEqual(
        ranks[1]?.map(({ method }) => method.executionWeights()[0]?.weight.format),
        ["code4", "dense"],
      );
      await setTimeout(0);
    } finally {
      process.off("warning", listen);
    }
    const [warning, ...others] = warnings.filter(({ code }) => code === SKIP_LIST_WARNING);
    assert.deepEqual(others, []);
    assert.match(warning?.message ?? "", /but quantized: a; not in llm_int8_skip_modules and not quantized: b$/);
  });
});

describe("a checkpoint and its config", () => {
  const split = splitAt(300, 100);

  it("is asked for once all layers have been made; a layer after that is a bug, and said to be one", () => {
    const source = checkpointOf(storeFourBit("a", [300, 64], randomValues(300 * 64, 1)));
    const config = storedConfig(source);
    const view = config.checkpoint;
    assert.equal(config.checkpoint, view);
    const layer: LinearLayer = {
      prefix: "a",
      kind: "column",
      inputSize: 64,
      inputs: { start: 0, end: 64 },
      parts: [],
      outputSizePerPartition: 0,
      rank: 0,
      worldSize: 1,
      dtype: "f32",
    };
    assert.throws(() => config.linearMethod(layer), InternalError);
  });

  it("a weight that two layers take in two forms is a bug, and said to be one", () => {
    const source = checkpointOf(storeFourBit("a", [300, 64], randomValues(300 * 64, 1)));
    const twice = () =>
      loadRanks(
        2,
        source,
        storedConfig,
        column("a", 300, 64, split),
        merged("ab", 64, [
          { name: "a", outputSize: 300, split },
          { name: "b", outputSize: 300, split },
        ]),
      );
    assert.throws(twice, InternalError);
    const otherGroups = () => {
      loadRanks(2, source, storedConfig, column("a", 300, 64, split), row("a", 300, 64, splitAt(64, 32)));
    };
    assert.throws(otherGroups, InternalError);
    const alike = loadRanks(2, source, storedConfig, column("a", 300, 64, split), column("a", 300, 64, split));
    assert.equal(alike[0]?.length, 2, "tied weights are taken twice in one form");
  });

  it("is left as it was: nothing is written to what it reads, and ranks may share it", () => {
    const tensors = [
      ...storeFourBit("a", [300, 64], randomValues(300 * 64, 1), { doubleQuant: true }),
      ...storeInt8("b", [300, 64], randomValues(300 * 64, 2)),
    ];
    const source = checkpointOf(tensors);
    const before = tensors.map((tensor) => Buffer.from(bytesOfTensor(tensor)).toString("base64"));
    const names = [...source.tensors.keys()];
    loadRanks(2, source, storedConfig, column("a", 300, 64, split), row("b", 300, 64, splitAt(64, 16)));
    assert.deepEqual(
      tensors.map((tensor) => Buffer.from(bytesOfTensor(tensor)).toString("base64")),
      before,
    );
    assert.deepEqual([...source.tensors.keys()], names);
  });

  for (const model of ["nf4-dq", "int8", "bf16"]) {
    it(`llama/${model}: is not kept by the layers that were loaded from it`, async () => {
      setFlagsFromString("--expose-gc");
      const collect: unknown = runInNewContext("gc");
      assert.ok(typeof collect === "function");
      const name = "model.layers.0.mlp.down_proj";
      const load = () => {
        const source = openFixture(`llama/${model}`);
        const quantization = model === "bf16" ? inFlightConfig(source, { doubleQuant: true }) : storedConfig(source);
        const options = { rank: 0, worldSize: 1, checkpoint: source, quantization, ignores: () => true };
        const { linears } = loadLayers(options, row(name, 128, 256, splitAt(256)));
        const kept = [new WeakRef(source), new WeakRef(quantization.checkpoint ?? assert.fail())];
        source.close();
        return { linears, quantization, kept };
      };
      const { linears, quantization, kept } = load();
      for (let i = 0; i < 50 && kept.some((reference) => reference.deref() !== undefined); i++) {
        await setTimeout(0);
        collect();
      }
      assert.deepEqual(
        kept.map((reference) => reference.deref()),
        [undefined, undefined],
      );
      assert.equal(linears[0]?.method.executionWeights().length, 1);
      assert.throws(() => quantization.checkpoint, InternalError);
    });
  }

  it("loads again from the same source, the same", () => {
    const source = openFixture("llama/nf4-dq");
    const name = "model.layers.0.mlp.down_proj";
    const load = () => loadRanks(1, source, storedConfig, row(name, 128, 256, splitAt(256)));
    const [first, second] = [load(), load()];
    const weight = first[0]?.[0]?.method.executionWeights()[0]?.weight ?? assert.fail();
    assert.equal(weight.format, "code4");
    expectShards(second, () => valuesOf(first));
  });
});

function valuesOf(ranks: ReturnType<typeof loadRanks>): Float32Array {
  const weight = ranks[0]?.[0]?.method.executionWeights()[0]?.weight ?? assert.fail();
  return dequantize(weight);
}
