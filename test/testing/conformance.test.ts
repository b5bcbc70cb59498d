/** The conformance kit: honest plugins pass all of it. What it catches stands in conformance-broken.test.ts. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LinearLayer, LinearMethod, ShardIndexer } from "../../src/plugin.js";
import { modelInFormat, type PluginFixture, SimulationAssertionError, testPlugin } from "../../src/testing/index.js";
import { fused, inFlight, oddRows, separate, unknown, writtenFixture } from "./broken-plugins/fixtures.js";
import { NibLoader } from "./broken-plugins/nib-file.js";
import { METHOD, NibblesConfig, NibblesMethod, nibblesPlugin } from "./broken-plugins/nibbles.js";

describe("an honest plugin", () => {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-nibbles-"));
  after(() => rmSync(folder, { recursive: true }));
  const plugin = nibblesPlugin({ loader: new NibLoader() });
  const fixtures = [separate, unknown, fused, oddRows, inFlight, writtenFixture(folder)];
  for (const { name, run } of testPlugin(plugin, fixtures)) it(name, run);
});

/** Answers by the original offsets, which of single query, key and value tensors count this rank's rows. */
class IndexingByOffsets extends NibblesMethod {
  protected override indexer(layer: LinearLayer): ShardIndexer {
    const byExtent = super.indexer(layer);
    return (query) => {
      if (layer.kind !== "qkv" || query.of === "source") return byExtent(query);
      const own = query.originalOffsets().get(String(query.shardId)) ?? assert.fail();
      const total = query.originalOffsets().get("total") ?? assert.fail();
      const storage = (rows: number): number => (rows * query.storageExtent) / total.size;
      return { offset: storage(own.offset), size: storage(own.size) };
    };
  }
}

class IndexingByOffsetsConfig extends NibblesConfig {
  protected override createMethod(): LinearMethod {
    return new IndexingByOffsets(this);
  }
}

describe("a shard indexer that answers by the original offsets", () => {
  const plugin = nibblesPlugin({ createConfig: (request) => new IndexingByOffsetsConfig(request) });
  const checks = testPlugin(plugin, [separate]).filter(({ name }) => /original offsets|qkv layers/.test(name));
  assert.equal(checks.length, 5);
  for (const { name, run } of checks) it(`passes: ${name}`, run);
});

describe("the checks of a plugin", () => {
  it("have names of their own, the same every time", () => {
    const names = (): string[] => testPlugin(nibblesPlugin(), [separate, fused]).map(({ name }) => name);
    assert.deepEqual(names(), names());
    assert.equal(new Set(names()).size, names().length);
  });

  it("leave out the kinds of layers that the fixture says are not served", () => {
    const names = testPlugin(nibblesPlugin(), [{ ...separate, skip: ["row", "embedding"] }]).map(({ name }) => name);
    assert.ok(names.some((name) => name.includes("column layers")));
    assert.ok(!names.some((name) => /row layers|embedding layers/.test(name)));
  });

  /** Runs one check, which must fail, and returns its message. */
  async function failureOf(fixture: PluginFixture, check: string): Promise<string> {
    const { run } =
      testPlugin(nibblesPlugin(), [fixture]).find(({ name }) => name.endsWith(check)) ?? assert.fail(check);
    try {
      await run();
    } catch (error) {
      assert.ok(error instanceof SimulationAssertionError, String(error));
      return error.message;
    }
    return assert.fail("it passed");
  }

  it("fail where the fixture gives them nothing to check", async () => {
    const values = "column layers hold the expected values";
    assert.match(
      await failureOf({ ...separate, expected: () => undefined }, values),
      /^expected values for the matrices of column layers but the fixture's "expected" knows none of them$/,
    );
    assert.match(
      await failureOf({ ...separate, expected: () => new Float32Array(3) }, values),
      /^the fixture's expected values of model\.layers\.0\.self_attn\.q_proj\.weight: expected 6400 but received 3$/,
    );
    const alone = modelInFormat({ config: { num_attention_heads: 1, num_key_value_heads: 1 } });
    const whole = "a whole model is held once, and as one rank holds it, on 2 to 8 ranks";
    assert.match(
      await failureOf({ name: "one head", ...alone, quantization: METHOD }, whole),
      /^expected a model that 2 to 8 ranks can share but no number of them can$/,
    );
  });

  it("say where a format can be cut is to be stated, when it refuses a cut", async () => {
    const { cutsAt: _, ...anywhere } = separate;
    const message = await failureOf(anywhere, "row layers are slices of the whole on 2 to 8 ranks");
    assert.match(message, /INEXACT_PACKING.*; a format that cannot be cut there says in "cutsAt" where it can$/);
  });

  it("show a plugin's own error as the cause", async () => {
    const path = "/no/such/model";
    const { run } = testPlugin(nibblesPlugin(), [{ name: "nowhere", model: path }]).at(-1) ?? assert.fail();
    await assert.rejects(run, (error: unknown) => {
      assert.ok(error instanceof SimulationAssertionError);
      assert.match(
        error.message,
        /^the model on 2 ranks: expected no error but received CheckpointError MODEL_NOT_FOUND/,
      );
      return error.cause instanceof Error && "code" in error.cause && error.cause.code === "MODEL_NOT_FOUND";
    });
  });
});
