/**
 * Sharded states: what ranks saved loads at any number of ranks, with the bits that the original model has there; and a
 * state that is damaged, incomplete or made up is refused with an error that names the file.
 */
import assert from "node:assert/strict";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { plugin } from "@shardloom/bitsandbytes";
import fc from "fast-check";
import { CheckpointError, type ShardloomError } from "../../src/core/errors.js";
import { launch, type ShardOptions, type ShardProgress, shard } from "../../src/index.js";
import { MANIFEST_FILE } from "../../src/loading/sharded-state/manifest.js";
import { ShardedState } from "../../src/loading/sharded-state/sharded-state.js";
import { type Simulation, simulate } from "../../src/testing/index.js";
import { temporaryFolder } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, readGolden } from "../models/golden.js";

const PLUGIN = "@shardloom/bitsandbytes";

/** The bits of everything that a rank multiplies with, and of its norms and biases. */
function bitsOf(simulation: Simulation): ReadonlyMap<string, Uint8Array> {
  const bits = new Map<string, Uint8Array>();
  for (const { rank, layers, parameters } of simulation.ranks) {
    for (const layer of layers) bits.set(`${rank} ${layer.prefix}`, new Uint8Array(layer.values().buffer));
    const plain = parameters.filter(({ name }) => name.endsWith("norm.weight") || name.endsWith(".bias"));
    for (const parameter of plain) bits.set(`${rank} ${parameter.name}`, parameter.bytes());
  }
  return bits;
}

async function expectSameBits(model: string, state: string, worldSize: number, original = {}): Promise<void> {
  const [expected, received] = [
    await simulate({ model, worldSize, plugins: [plugin], ...original }),
    // No plugin: what it did is done.
    await simulate({ model: state, worldSize }),
  ];
  try {
    const [wanted, found] = [bitsOf(expected), bitsOf(received)];
    assert.deepEqual([...found.keys()], [...wanted.keys()]);
    for (const [name, bytes] of wanted) {
      assert.ok(Buffer.from(bytes).equals(found.get(name) ?? new Uint8Array(0)), `${name} at ${worldSize} ranks`);
    }
  } finally {
    await expected.close();
    await received.close();
  }
}

function codeOf(error: unknown): string {
  assert.ok(error instanceof Error && "code" in error, String(error));
  return String(error.code);
}

describe("a sharded state", () => {
  const folder = temporaryFolder();
  let count = 0;
  const save = async (model: string, tp: number, options: Partial<ShardOptions> = {}): Promise<string> => {
    const out = join(folder.path, `state${count++}`);
    const report = await shard({ model, tensorParallelSize: tp, out, plugins: [PLUGIN], threads: 2, ...options });
    assert.equal(report.worldSize, tp);
    const weights = readdirSync(out).filter((name) => name.endsWith(".safetensors"));
    assert.deepEqual(report.files.map(({ name }) => name).toSorted(), weights.toSorted());
    return out;
  };

  it("tells how much has been written, and ends with all of it; a listener that throws ends the work", async () => {
    const told: ShardProgress[] = [];
    const out = await save(fixture("tiny/llama/bf16"), 3, { onProgress: (progress) => told.push(progress) });
    const sizes = readdirSync(out).filter((name) => name.endsWith(".safetensors"));
    const written = sizes.reduce((sum, name) => sum + statSync(join(out, name)).size, 0);
    const done = told.map(({ bytesDone }) => bytesDone);
    assert.deepEqual(
      done,
      done.toSorted((a, b) => a - b),
    );
    assert.deepEqual([told.at(-1)?.bytesDone, told.at(-1)?.ranksDone, told.at(-1)?.worldSize], [written, 3, 3]);
    const refused = join(folder.path, "refused");
    const onProgress = (): never => {
      throw new TypeError("not interested");
    };
    await assert.rejects(shard({ model: fixture("tiny/llama/bf16"), out: refused, onProgress }));
    assert.equal(existsSync(refused), false);
  });

  for (const [model, saved, loaded] of [
    ["llama/bf16", 4, [1, 2, 3, 4]],
    ["llama/nf4-dq", 4, [1, 2, 3, 4]],
    ["llama/fp4", 3, [1, 2, 4]],
    ["llama/int8", 3, [1, 2, 4]],
    ["llama-uneven/nf4-skip", 4, [1, 2, 3, 6]],
    ["qwen2/nf4", 3, [1, 2, 4]],
    ["qwen3/nf4", 5, [1, 2, 4]],
    ["mistral/nf4", 8, [1, 3, 5]],
    ["phi3/nf4", 2, [1, 3, 6]],
    ["phi3/nf4", 5, [1, 2, 4]],
  ] as const) {
    it(`of ${model}, saved at ${saved} ranks, has the bits of the model at ${loaded.join(", ")}`, async () => {
      const path = fixture(`tiny/${model}`);
      const state = await save(path, saved);
      for (const worldSize of loaded) await expectSameBits(path, state, worldSize);
    });
  }

  it("of a model that is quantized while it is loaded has the bits that it would then have", async () => {
    const model = fixture("tiny/qwen3/bf16");
    const choice = { quantization: "bitsandbytes", quantizationOptions: { type: "nf4", doubleQuant: true } };
    const state = await save(model, 2, choice);
    for (const worldSize of [1, 2, 4]) await expectSameBits(model, state, worldSize, choice);
  });

  it("answers on worker threads as transformers does, at the number of ranks it was saved for and at others", async () => {
    const state = await save(fixture("tiny/llama/nf4-dq"), 2, { maxShardBytes: 50_000 });
    assert.ok(
      readdirSync(state).includes("model-rank-1-part-1.safetensors"),
      "files are cut where they are told to be",
    );
    const [prompt] = readGolden(fixture("tiny/llama/nf4-dq.golden.json")).prompts;
    assert.ok(prompt !== undefined);
    for (const tensorParallelSize of [1, 2, 3]) {
      const engine = await launch({ model: state, tensorParallelSize, activations: "f32" });
      try {
        const sampling = { maxTokens: prompt.generatedIds.length, logprobs: 20, ignoreEndOfSequence: true };
        expectGolden(await collect(engine, prompt.promptIds, sampling), prompt, 1e-3, `tp ${tensorParallelSize}`);
      } finally {
        await engine.close();
      }
    }
  });

  it("is saved again, quantized or not, as another state with the same bits", async () => {
    const model = fixture("tiny/llama/nf4");
    const again = await save(await save(model, 3), 2);
    await expectSameBits(model, again, 4);
  });

  it("of a whole model takes about its bytes: what all ranks share is there once", async () => {
    const model = fixture("tiny/llama/bf16");
    const sizeOf = (directory: string): number =>
      readdirSync(directory)
        .filter((name) => name.endsWith(".safetensors"))
        .reduce((sum, name) => sum + readFileSync(join(directory, name)).length, 0);
    const state = await save(model, 2);
    const norms = 5 * 128 * 2;
    assert.ok(sizeOf(state) < sizeOf(model) + norms + 2 * 4096);
  });

  describe("is refused", () => {
    let state = "";
    beforeEach(async () => {
      state = await save(fixture("tiny/llama/nf4"), 2);
    });

    const damaged = (damage: (directory: string) => void): string => {
      const path = join(folder.path, `damaged${count++}`);
      cpSync(state, path, { recursive: true });
      damage(path);
      return path;
    };
    const refusal = async (path: string, worldSize = 2): Promise<ShardloomError> => {
      try {
        const engine = await launch({ model: path, tensorParallelSize: worldSize });
        await engine.close();
      } catch (error) {
        assert.ok(error instanceof CheckpointError, String(error));
        return error;
      }
      throw new Error("it was loaded");
    };
    const edit = (change: (manifest: Record<string, unknown>) => void): string =>
      damaged((path) => {
        const file = join(path, MANIFEST_FILE);
        const manifest = JSON.parse(readFileSync(file, "utf8"));
        change(manifest);
        writeFileSync(file, JSON.stringify(manifest));
      });
    const RANK_1 = "model-rank-1-part-0.safetensors";

    it("when a bit of any file has changed, at any number of ranks, unless nobody looks", async () => {
      const path = damaged((directory) => {
        const bytes = readFileSync(join(directory, RANK_1));
        const last = bytes.length - 1;
        bytes[last] = (bytes[last] ?? 0) ^ 1;
        writeFileSync(join(directory, RANK_1), bytes);
      });
      for (const worldSize of [1, 2, 4]) {
        const error = await refusal(path, worldSize);
        assert.equal(error.code, "CHECKSUM_MISMATCH");
        assert.equal(error.details.file, join(path, RANK_1));
      }
      const engine = await launch({ model: path, tensorParallelSize: 2, verifyChecksums: false });
      await engine.close();
    });

    it("when a file is shorter, or missing, or the manifest is", async () => {
      const short = damaged((path) => truncateSync(join(path, RANK_1), 1000));
      assert.equal((await refusal(short)).code, "CHECKSUM_MISMATCH");
      const missing = damaged((path) => rmSync(join(path, RANK_1)));
      const error = await refusal(missing);
      assert.equal(error.code, "MISSING_WEIGHT_FILE");
      assert.equal(error.details.file, join(missing, RANK_1));
      // Without a manifest the files are those of no format: a rank's own names are not the model's.
      const bare = damaged((path) => rmSync(join(path, MANIFEST_FILE)));
      assert.ok((await refusal(bare)) instanceof CheckpointError);
    });

    it("when it is of another version, naming both", async () => {
      const error = await refusal(
        edit((manifest) => {
          manifest["version"] = 1;
        }),
      );
      assert.equal(error.code, "SHARDED_STATE_VERSION");
      assert.match(error.message, /shardloom-state\.json: version: expected version 2 but received 1$/);
    });

    it("when its manifest is not what the files hold", async () => {
      const renamed = edit(({ vectors }) => {
        assert.ok(Array.isArray(vectors));
        vectors[0].name = "model.other.weight";
      });
      const error = await refusal(renamed);
      assert.equal(error.code, "INVALID_SHARDED_STATE");
      assert.match(error.message, /model\.other\.weight: expected \[128\] f32 in a file of rank 0, but received none/);
      const gap = edit(({ matrices }) => {
        assert.ok(Array.isArray(matrices));
        matrices[0].pieces.pop();
      });
      assert.match((await refusal(gap)).message, /matrices\[0\]: expected pieces that hold every element/);
    });

    it("property: whatever is in the manifest, opening it ends in a checkpoint or in a CheckpointError", () => {
      const text = readFileSync(join(state, MANIFEST_FILE), "utf8");
      const path = damaged(() => {});
      const values = fc.oneof(
        fc.constantFrom(null, true, -1, 0, 1, 2 ** 31, 2 ** 53, 1e308, "", "code4", "../x.safetensors"),
        fc.constant([]),
        fc.constant({}),
        fc.jsonValue(),
      );
      let opened = 0;
      const property = fc.property(fc.nat(), values, (seed, value) => {
        const manifest = JSON.parse(text);
        replaceAt(manifest, seed, value);
        writeFileSync(join(path, MANIFEST_FILE), JSON.stringify(manifest));
        try {
          ShardedState.open(path, { rank: 0, worldSize: 1, verifyChecksums: true }).close();
          opened++;
        } catch (error) {
          assert.ok(error instanceof CheckpointError, String(error));
        }
      });
      fc.assert(property, { numRuns: 300 });
      assert.ok(opened < 100, "most replacements are nonsense");
    });
  });

  it("is not made of what it cannot say, nor where something is already, and then nothing is left", async () => {
    const refused = async (options: ShardOptions, code: string): Promise<void> => {
      const before = readdirSync(folder.path);
      await assert.rejects(shard(options), (error: unknown) => codeOf(error) === code);
      assert.deepEqual(readdirSync(folder.path), before);
    };
    const model = fixture("tiny/llama/int8");
    const out = join(folder.path, "never");
    const activations = { quantizationOptions: { int8Activations: true } };
    await refused(
      { model, out, plugins: [PLUGIN], quantization: "bitsandbytes", ...activations, tensorParallelSize: 2 },
      "UNSUPPORTED_SHARDED_STATE",
    );
    await refused({ model, out, plugins: [PLUGIN], tensorParallelSize: 30 }, "TOO_MANY_RANKS");
    await refused({ model, out: folder.path, plugins: [PLUGIN] }, "OUTPUT_EXISTS");
    const controller = new AbortController();
    controller.abort();
    await refused({ model, out, plugins: [PLUGIN], signal: controller.signal }, "CANCELLED");
  });
});

/** Replaces one value somewhere in a document: which, the seed says. */
function replaceAt(document: unknown, seed: number, value: unknown): void {
  let node: unknown = document;
  for (let rest = seed; ; ) {
    if (typeof node !== "object" || node === null) return;
    const keys = Object.keys(node);
    const key = keys[rest % keys.length];
    if (key === undefined) return;
    rest = Math.floor(rest / keys.length);
    const child: unknown = Reflect.get(node, key);
    if (rest === 0 || typeof child !== "object" || child === null) {
      Reflect.set(node, key, value);
      return;
    }
    node = child;
  }
}
