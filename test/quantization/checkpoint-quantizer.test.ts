import assert from "node:assert/strict";
import { ShardloomError } from "../../src/core/errors.js";
import { createRegistries, PLUGIN_API_VERSION, registerPlugin } from "../../src/loading/plugins.js";
import { type CheckpointQuantizer, CheckpointQuantizerRegistry } from "../../src/quantization/checkpoint-quantizer.js";

const code =
  (expected: string, ...words: string[]) =>
  (error: unknown) =>
    error instanceof ShardloomError && error.code === expected && words.every((word) => error.message.includes(word));

function quantizerOf(): CheckpointQuantizer {
  return { plan: () => ({ settings: "{}", replace: () => null }) };
}

describe("formats that checkpoints can be quantized into", () => {
  it("are registered twice as often as one likes, but not by two", () => {
    const registry = new CheckpointQuantizerRegistry();
    const ternary = quantizerOf();
    registry.register("ternary", ternary, "@a/ternary");
    registry.register("ternary", ternary, "@a/ternary");
    registry.register("binary", quantizerOf(), "@a/ternary");
    assert.deepEqual(registry.formats, ["ternary", "binary"]);
    assert.deepEqual(registry.select("ternary"), { quantizer: ternary, owner: "@a/ternary" });
    assert.throws(
      () => registry.register("ternary", quantizerOf(), "@b/ternary"),
      code("DUPLICATE_REGISTRATION", "@a/ternary", "@b/ternary"),
    );
  });

  it("are listed to whoever asks for another", () => {
    const registry = new CheckpointQuantizerRegistry();
    assert.throws(() => registry.select("int4"), code("UNKNOWN_QUANTIZATION_FORMAT", "int4", "none is registered"));
    registry.register("ternary", quantizerOf(), "@a/ternary");
    registry.register("binary", quantizerOf(), "@a/ternary");
    assert.throws(() => registry.select("int4"), code("UNKNOWN_QUANTIZATION_FORMAT", "int4", "ternary, binary"));
  });

  it("are objects with plan(), under a name", () => {
    const registry = new CheckpointQuantizerRegistry();
    for (const [format, quantizer] of [
      ["x", null],
      ["x", {}],
      ["x", { plan: 1 }],
      ["x", () => ({})],
      ["", quantizerOf()],
      [undefined, quantizerOf()],
    ]) {
      assert.throws(
        () => Reflect.apply(registry.register, registry, [format, quantizer, "@a/x"]),
        code("INVALID_CHECKPOINT_QUANTIZER", "@a/x"),
      );
    }
  });

  it("come from plugins", () => {
    const registries = createRegistries();
    const quantizer = quantizerOf();
    registerPlugin(registries, {
      name: "@a/ternary",
      apiVersion: PLUGIN_API_VERSION,
      register: ({ registerCheckpointQuantizer }) => registerCheckpointQuantizer("ternary", quantizer),
    });
    assert.deepEqual(registries.checkpointQuantizers.select("ternary"), { quantizer, owner: "@a/ternary" });
  });
});
