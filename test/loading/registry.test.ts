import assert from "node:assert/strict";
import { join } from "node:path";
import { type ErrorDetails, OptionError, PluginError, type ShardloomError } from "../../src/core/errors.js";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import type { ModelLoader } from "../../src/loading/model-loader.js";
import { createModelLoaderRegistry } from "../../src/loading/registry.js";
import { checkpointError, temporaryFolder } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";

function loader(format: string, extension: string): ModelLoader {
  return {
    format,
    matches: (path) => path.endsWith(extension),
    describe: () => assert.fail("not asked for"),
    open: () => assert.fail("not asked for"),
  };
}

function typed(
  Class: new (code: string, message: string, details?: ErrorDetails) => ShardloomError,
  code: string,
  ...patterns: readonly RegExp[]
): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof Class, String(error));
    assert.equal(error.code, code);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  };
}

describe("the registry of model loaders", () => {
  const folder = temporaryFolder();

  it("knows sharded states, safetensors and dummy weights without any plugin, and picks safetensors for a directory that has some", () => {
    const registry = createModelLoaderRegistry();
    assert.deepEqual(registry.formats, ["sharded_state", "safetensors", "dummy"]);
    assert.equal(registry.select(fixture("tiny/llama/bf16")), safetensorsLoader);
    assert.equal(registry.select("anything at all", "safetensors"), safetensorsLoader);
  });

  it("picks a plugin's loader for what it recognizes, or when it is asked for", () => {
    const registry = createModelLoaderRegistry();
    const other = loader("other", ".other");
    registry.register(other, "other-plugin");
    assert.equal(registry.select("model.other"), other);
    assert.equal(registry.select("model.other", "auto"), other);
    assert.equal(registry.select(fixture("tiny/llama/bf16"), "other"), other);
  });

  it("asks loaders in the order in which they were registered", () => {
    const registry = createModelLoaderRegistry();
    const first = loader("first", ".x");
    registry.register(first, "a");
    registry.register(loader("second", ".x"), "b");
    assert.equal(registry.select("model.x"), first);
  });

  it("is one engine's own", () => {
    const registry = createModelLoaderRegistry();
    registry.register(loader("other", ".other"), "other-plugin");
    assert.deepEqual(createModelLoaderRegistry().formats, ["sharded_state", "safetensors", "dummy"]);
  });

  it("takes the same object twice as once", () => {
    const registry = createModelLoaderRegistry();
    const other = loader("other", ".other");
    registry.register(other, "other-plugin");
    registry.register(other, "other-plugin");
    assert.deepEqual(registry.formats, ["sharded_state", "safetensors", "dummy", "other"]);
  });

  it("refuses another object under a taken format, naming both packages, and keeps the first", () => {
    const registry = createModelLoaderRegistry();
    const other = loader("other", ".other");
    registry.register(other, "package-a");
    const conflict = typed(PluginError, "DUPLICATE_REGISTRATION", /"other".*package-b.*package-a/);
    assert.throws(() => registry.register(loader("other", ".other"), "package-b"), conflict);
    assert.equal(registry.select("model.other"), other);
    const core = typed(PluginError, "DUPLICATE_REGISTRATION", /package-b.*shardloom/);
    assert.throws(() => registry.register(loader("safetensors", ".x"), "package-b"), core);
  });

  const { format: _, ...nameless } = loader("x", ".x");
  const { open: __, ...closed } = loader("x", ".x");
  const invalid: readonly (readonly [string, unknown, RegExp])[] = [
    ["nothing", undefined, /received undefined/],
    ["a string", "loader", /"loader" of type string/],
    ["a class that was not instantiated", class {}, /of type function/],
    ["no format", nameless, /format undefined/],
    ["an empty format", loader("", ".x"), /format ""/],
    ["the format that stands for any", loader("auto", ".x"), /format "auto"/],
    ["no open()", closed, /no function open/],
    ["a matches that is no function", { ...loader("x", ".x"), matches: true }, /no function matches/],
  ];
  for (const [what, value, message] of invalid) {
    it(`refuses ${what} from a plugin`, () => {
      const register: (loader: unknown, owner: string) => void = (candidate, owner) =>
        Reflect.apply(registry.register, registry, [candidate, owner]);
      const registry = createModelLoaderRegistry();
      assert.throws(
        () => register(value, "some-plugin"),
        typed(PluginError, "INVALID_MODEL_LOADER", /some-plugin/, message),
      );
    });
  }

  it("takes a loader that is an instance of a class", () => {
    class ClassLoader implements ModelLoader {
      readonly format = "class";
      matches(): boolean {
        return true;
      }
      describe(): never {
        return assert.fail();
      }
      open(): never {
        return assert.fail();
      }
    }
    const registry = createModelLoaderRegistry();
    registry.register(new ClassLoader(), "class-plugin");
    assert.equal(registry.select("whatever").format, "class");
  });

  it("lists the known formats when it is asked for another", () => {
    const registry = createModelLoaderRegistry();
    registry.register(loader("other", ".other"), "other-plugin");
    const unknown = typed(
      OptionError,
      "UNKNOWN_LOAD_FORMAT",
      /auto, sharded_state, safetensors, dummy, other/,
      /"onnx"/,
      /--plugin/,
    );
    assert.throws(() => registry.select("model", "onnx"), unknown);
  });

  it("says what it found and that a plugin may be missing when no loader recognizes a model", () => {
    const registry = createModelLoaderRegistry();
    const file = folder.write("model.onnx", "");
    assert.throws(
      () => registry.select(file),
      checkpointError("UNRECOGNIZED_MODEL", /\(sharded_state, safetensors\)/, /a \.onnx file/, /--plugin/),
    );
    assert.throws(
      () => registry.select(folder.path),
      checkpointError("UNRECOGNIZED_MODEL", /a directory of 1 files \(model\.onnx\)/),
    );
    const none = join(folder.path, "none");
    assert.throws(() => registry.select(none), checkpointError("UNRECOGNIZED_MODEL", /received nothing/));
  });

  it("names the package whose loader fails to look at a model", () => {
    const registry = createModelLoaderRegistry();
    const broken: ModelLoader = {
      ...loader("broken", ""),
      matches: () => {
        throw new TypeError("oops");
      },
    };
    registry.register(broken, "broken-plugin");
    assert.throws(() => registry.select("model.x"), typed(PluginError, "PLUGIN_FAILED", /broken-plugin.*oops/));
  });
});
