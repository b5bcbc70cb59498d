import assert from "node:assert/strict";
import { CheckpointError, ShardloomError } from "../../src/core/errors.js";
import type { JsonObject } from "../../src/core/json.js";
import { createRegistries, PLUGIN_API_VERSION, type Plugin, registerPlugin } from "../../src/loading/plugins.js";
import type {
  QuantizationConfig,
  QuantizationConfigFactory,
  QuantizationRequest,
} from "../../src/quantization/contract.js";
import { QuantizationRegistry } from "../../src/quantization/registry.js";
import { unquantized } from "../../src/quantization/unquantized.js";

const code =
  (expected: string, ...words: string[]) =>
  (error: unknown) =>
    error instanceof ShardloomError && error.code === expected && words.every((word) => error.message.includes(word));

const empty = { tensors: new Map(), bytesRead: 0, close() {} };

function factoryOf(config: QuantizationConfig = unquantized): QuantizationConfigFactory {
  return { create: () => config };
}

/** A registry that knows "ternary" and "binary". */
function registryOf(): QuantizationRegistry {
  const registry = new QuantizationRegistry();
  registry.register("ternary", factoryOf(), "@a/ternary");
  registry.register("binary", factoryOf(), "@a/binary");
  return registry;
}

describe("quantization registry", () => {
  it("takes the same factory twice, and names both packages when another one wants the name", () => {
    const registry = new QuantizationRegistry();
    const factory = factoryOf();
    registry.register("ternary", factory, "@a/ternary");
    registry.register("ternary", factory, "@a/ternary");
    assert.deepEqual(registry.names, ["ternary"]);
    assert.throws(
      () => registry.register("ternary", factoryOf(), "@b/ternary"),
      code("DUPLICATE_REGISTRATION", "@a/ternary", "@b/ternary"),
    );
  });

  it("refuses what is no factory", () => {
    const registry = new QuantizationRegistry();
    for (const factory of [null, {}, () => unquantized, { create: 1 }]) {
      assert.throws(
        () => Reflect.apply(registry.register, registry, ["x", factory, "@a/x"]),
        code("INVALID_QUANTIZATION_CONFIG", "@a/x"),
      );
    }
  });

  it("takes the method from config.json, also where text_config holds it, and hands its settings over", () => {
    const settings = { quant_method: "ternary", bits: 2 };
    const expected = { method: "ternary", origin: "checkpoint", settings, options: {} };
    assert.deepEqual(registryOf().select({ quantization_config: settings }, null), expected);
    assert.deepEqual(registryOf().select({ text_config: { quantization_config: settings } }, null), expected);
  });

  it("takes the user's wish for a checkpoint that is not quantized, and nothing when nobody wants anything", () => {
    const choice = { method: "binary", options: { blockSize: 32 } };
    assert.deepEqual(registryOf().select({}, choice), {
      method: "binary",
      origin: "user",
      settings: {},
      options: { blockSize: 32 },
    });
    assert.equal(registryOf().select({ quantization_config: null }, null), null);
  });

  it("refuses to read a checkpoint of one method as another, naming both", () => {
    const config = { quantization_config: { quant_method: "ternary" } };
    assert.throws(
      () => registryOf().select(config, { method: "binary", options: {} }),
      code("QUANTIZATION_CONFLICT", "ternary", "binary"),
    );
    assert.equal(registryOf().select(config, { method: "ternary", options: {} })?.origin, "checkpoint");
  });

  it("lets a plugin claim a checkpoint of another method", () => {
    const registry = registryOf();
    const override = (settings: JsonObject | null) =>
      settings?.["quant_method"] === "legacy-ternary" ? "ternary2" : null;
    registry.register("ternary2", { create: () => unquantized, overrideQuantizationMethod: override }, "@a/ternary2");
    assert.equal(
      registry.select({ quantization_config: { quant_method: "legacy-ternary" } }, null)?.method,
      "ternary2",
    );
    assert.equal(registry.select({ quantization_config: { quant_method: "ternary" } }, null)?.method, "ternary");
  });

  it("says which package to install for a method nobody serves", () => {
    assert.throws(
      () => registryOf().select({ quantization_config: { quant_method: "awq" } }, null),
      code("UNKNOWN_QUANTIZATION", '"awq"', "ternary, binary", "@shardloom/awq", "--plugin"),
    );
  });

  it("refuses a quantization_config that is no object or names no method", () => {
    for (const quantization_config of [1, [], "nf4", {}, { quant_method: 4 }, { quant_method: "" }]) {
      assert.throws(
        () => registryOf().select({ quantization_config }, null),
        (error: unknown) => error instanceof CheckpointError && error.code === "INVALID_CONFIG",
        JSON.stringify(quantization_config),
      );
    }
  });

  it("gives the factory request and checkpoint, and turns what it throws into an error that names the plugin", () => {
    const requests: QuantizationRequest[] = [];
    const registry = new QuantizationRegistry();
    const create = (request: QuantizationRequest): QuantizationConfig => {
      requests.push(request);
      if (request.options["fail"] === true) throw new RangeError("index out of range");
      return unquantized;
    };
    registry.register("ternary", { create }, "@a/ternary");
    const selection = { method: "ternary", origin: "user", settings: {}, options: {} } as const;
    assert.equal(registry.create(selection, empty), unquantized);
    assert.equal(requests[0]?.checkpoint, empty);
    assert.throws(
      () => registry.create({ ...selection, options: { fail: true } }, empty),
      code("PLUGIN_FAILED", "@a/ternary", "index out of range"),
    );
  });
});

describe("plugins", () => {
  const plugin: Plugin = {
    name: "@a/ternary",
    apiVersion: PLUGIN_API_VERSION,
    register: (context) => context.registerQuantizationConfig("ternary", shared),
  };
  const shared = factoryOf();

  it("may register any number of times", () => {
    const registries = createRegistries();
    registerPlugin(registries, plugin);
    registerPlugin(registries, plugin);
    registerPlugin(registries, { ...plugin });
    assert.deepEqual(registries.quantization.names, ["shardloom_state", "ternary"]);
  });

  it("of another API version are refused, naming both versions", () => {
    assert.throws(
      () => registerPlugin(createRegistries(), { ...plugin, apiVersion: 2 }),
      code("PLUGIN_API_VERSION", "@a/ternary", "version 1", "built for 2"),
    );
  });

  it("that are no plugins, or whose hook throws, are refused by name", () => {
    for (const value of [null, {}, { name: "x", apiVersion: 1 }, { name: 1, apiVersion: 1, register() {} }]) {
      assert.throws(
        () => Reflect.apply(registerPlugin, undefined, [createRegistries(), value]),
        code("INVALID_PLUGIN"),
      );
    }
    const failing: Plugin = {
      ...plugin,
      register() {
        throw new Error("no such device");
      },
    };
    assert.throws(
      () => registerPlugin(createRegistries(), failing),
      code("PLUGIN_FAILED", "@a/ternary", "no such device"),
    );
  });
});
