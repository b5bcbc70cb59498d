import assert from "node:assert/strict";
import { CheckpointError, PluginError, UnsupportedError } from "../../src/core/errors.js";
import type { QuantizationConfig } from "../../src/quantization/contract.js";
import { QuantizationRegistry } from "../../src/quantization/registry.js";

const config: QuantizationConfig = { name: "q", linearMethod: () => null };

describe("the registry of quantization formats", () => {
  it("leaves a model unquantized whose config.json names no quantization", () => {
    const registry = new QuantizationRegistry();
    assert.equal(registry.configOf({}).name, "unquantized");
    assert.equal(registry.configOf({ quantization_config: null }).name, "unquantized");
  });

  it("gives a format's factory the settings of config.json", () => {
    const registry = new QuantizationRegistry();
    const received: unknown[] = [];
    const factory = (settings: unknown): QuantizationConfig => {
      received.push(settings);
      return config;
    };
    registry.register("q", factory, "some-plugin");
    const settings = { quant_method: "q", bits: 4 };
    assert.equal(registry.configOf({ quantization_config: settings }), config);
    assert.deepEqual(received, [settings]);
  });

  it("never ignores a quantization that nobody serves", () => {
    const registry = new QuantizationRegistry();
    registry.register("q", () => config, "some-plugin");
    assert.throws(
      () => registry.configOf({ quantization_config: { quant_method: "other" } }),
      (error) =>
        error instanceof UnsupportedError && error.code === "UNKNOWN_QUANTIZATION" && /other.*q/.test(error.message),
    );
  });

  for (const [what, settings] of [
    ["no object", "4bit"],
    ["without a method", { bits: 4 }],
    ["of a method that is no name", { quant_method: 4 }],
  ] as const) {
    it(`refuses a quantization_config ${what}`, () => {
      assert.throws(
        () => new QuantizationRegistry().configOf({ quantization_config: settings }),
        (error) => error instanceof CheckpointError && error.code === "INVALID_CONFIG",
      );
    });
  }

  it("takes the same factory twice, and another one under its name from nobody", () => {
    const registry = new QuantizationRegistry();
    const factory = (): QuantizationConfig => config;
    registry.register("q", factory, "first");
    registry.register("q", factory, "first");
    assert.throws(
      () => registry.register("q", () => config, "second"),
      (error) => error instanceof PluginError && /second.*first/.test(error.message),
    );
    assert.deepEqual(registry.names, ["q"]);
  });
});
