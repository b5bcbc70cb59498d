/** The plugin of docs/quantization-plugin.md on whole models: every shard, every answer, and everything that may be wrong. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  expectIndexerCalls,
  expectOwnedOnce,
  expectReassembles,
  expectSameLogits,
  type Simulation,
  simulate,
} from "shardloom/testing";
import { ShardloomError } from "../../src/core/errors.js";
import type { LinearModule } from "../../src/layers/layer-context.js";
import { compareShard } from "../../src/testing/layers.js";
import { cli } from "../cli/cli-process.js";
import { fixture } from "../fixture.js";
import { configOf, loadRanks, type StoredTensor, tensorsOf, writeModel } from "../loading/rewritten-model.js";
import { type TernaryModel, writeDequantizedModel, writeTernaryModel } from "./ternary-checkpoint.js";
import { plugin } from "./ternary-plugin/index.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");

/** Rows of the matrices that Phi 3 fuses; those of v begin inside a block of 32. */
const PHI3_FUSED = { qkv_proj: [96, 48, 48], gate_up_proj: [192, 192] };

const sources = [
  { source: "tiny/llama/bf16", fused: {}, largest: 4 },
  { source: "tiny/llama-uneven/bf16", fused: {}, largest: 6 },
  { source: "tiny/qwen2/bf16", fused: {}, largest: 4 },
  { source: "tiny/phi3/bf16", fused: PHI3_FUSED, largest: 6 },
];

function workFolder(): { readonly path: string } {
  let path = "";
  before(() => {
    path = mkdtempSync(join(tmpdir(), "shardloom-tutorial-"));
  });
  after(() => rmSync(path, { recursive: true, force: true }));
  return {
    get path() {
      return path;
    },
  };
}

function isTernary({ method }: LinearModule): boolean {
  return method.executionWeights().every(({ weight }) => weight.format === "code4");
}

describe("the ternary plugin: weights", () => {
  const folder = workFolder();
  for (const { source, fused, largest } of sources) {
    for (const [blockRows, ends] of [
      [32, false],
      [24, true],
      [1, true],
      [1000, false],
    ] as const) {
      const what = `blocks of ${blockRows} rows${ends ? ", embedding and head too" : ""}`;
      it(`${source}, ${what}: every shard is its slice of the whole, to the bit`, async () => {
        const model = writeTernaryModel(fixture(source), join(folder.path, "model"), { blockRows, ends, fused });
        for (const worldSize of [1, 2, 3, 4, 5, 6].filter((size) => size <= largest)) {
          for (const { context } of await loadRanks(model.path, worldSize, { plugins: [plugin] })) {
            // Two layers of four linear layers each; the embedding, which here is the head of some.
            assert.ok(context.linears.filter(isTernary).length >= 8 + (ends ? 1 : 0));
            for (const linear of context.linears.filter(isTernary)) expectSlice(linear, model);
          }
        }
      });
    }
  }

  function expectSlice(linear: LinearModule, { values }: TernaryModel): void {
    const difference = compareShard(linear, (part, layer) => {
      const own = values.get(`${part.prefix}.weight`);
      if (own !== undefined) return own;
      const before = layer.parts.slice(0, layer.parts.indexOf(part));
      const first = before.reduce((sum, { outputSize }) => sum + outputSize, 0);
      return values.get(`${layer.prefix}.weight`)?.subarray(first * layer.inputSize) ?? assert.fail(part.prefix);
    });
    assert.equal(difference, null);
  }
});

/** At each step of their answers the likeliest token leads by more than sums of another order may differ. */
const PROMPTS = [
  [7, 11, 13],
  [400, 3, 250, 77],
  [33, 34, 35, 36, 37, 38, 39, 40],
];

describe("the ternary plugin: answers", () => {
  const folder = workFolder();
  for (const { source, fused } of sources) {
    it(`${source}: tokens are the same at every world size, and logits those of the dequantized weights`, async () => {
      const ternary = writeTernaryModel(fixture(source), join(folder.path, "ternary"), { blockRows: 32, fused });
      const model = ternary.path;
      const dequantized = writeDequantizedModel(fixture(source), join(folder.path, "dequantized"), ternary);
      const answers = new Set<string>();
      for (const worldSize of [1, 2, 3, 4]) {
        const simulation = await simulate({ model, worldSize, plugins: [plugin] });
        await expectReassembles(simulation);
        expectOwnedOnce(simulation);
        expectSameLogits(simulation, await simulation.unsharded(), 1e-4);

        const plain = await simulate({ model: dequantized, worldSize });
        expectSameLogits(simulation, plain, 0);
        answers.add(PROMPTS.map((prompt) => simulation.generate(prompt, 12).tokenIds).join(" "));
        await Promise.all([simulation.close(), plain.close()]);
      }
      assert.equal(answers.size, 1);
    });
  }
});

describe("the ternary plugin: its shard indexer", () => {
  const folder = workFolder();
  const load = (source: string, fused: Readonly<Record<string, readonly number[]>>): Promise<Simulation> => {
    const { path } = writeTernaryModel(fixture(source), join(folder.path, "model"), { blockRows: 32, fused });
    return simulate({ model: path, worldSize: 2, plugins: [plugin] });
  };

  it("is asked for scales of fused tensors alone, and needs no original offsets", async () => {
    const simulation = await load("tiny/phi3/bf16", PHI3_FUSED);
    const parameters = new Set(simulation.indexerCalls.map(({ parameter }) => parameter));
    assert.deepEqual(
      [...parameters].sort(),
      [0, 1].flatMap((layer) =>
        ["mlp.gate_up_proj", "self_attn.qkv_proj"].map((name) => `model.layers.${layer}.${name}.weight_scale`),
      ),
    );
    const [qkv] = [...parameters].filter((name) => name.includes("0.self_attn"));
    const rank1 = simulation.indexerCalls.filter(({ rank, parameter }) => rank === 1 && parameter === qkv);
    // Rank 1 has rows 64..95 of q, 32..47 of k and of v. On disk: three blocks of q, two of k, two of v.
    assert.deepEqual(
      rank1.map(({ shardId, of, answer: { offset, size } }) => [shardId, of, offset, size]),
      [
        ["q", "destination", 0, 1],
        ["q", "source", 2, 1],
        ["k", "destination", 1, 1],
        ["k", "source", 4, 1],
        ["v", "destination", 2, 1],
        ["v", "source", 6, 1],
      ],
    );
    expectIndexerCalls(simulation, { calls: simulation.indexerCalls, offsetComputations: 0 });
    await simulation.close();
  });

  it("is not there where every matrix has a tensor of its own", async () => {
    const simulation = await load("tiny/llama/bf16", {});
    expectIndexerCalls(simulation, { calls: [] });
    await simulation.close();
  });

  it("is needed: one grid through the whole tensor is refused, not taken for blocks of each matrix", async () => {
    const source = fixture("tiny/phi3/bf16");
    const oneGrid = { qkv_proj: [192], gate_up_proj: [384] };
    const { path } = writeTernaryModel(source, join(folder.path, "one-grid"), { blockRows: 32, fused: oneGrid });
    await assert.rejects(
      simulate({ model: path, worldSize: 2, plugins: [plugin] }),
      (error) => error instanceof ShardloomError && error.code === "INVALID_EXTENT" && /0\.\.6/.test(error.message),
    );
  });
});

describe("the ternary plugin: wrong input ends in an error that says what and where", () => {
  const folder = workFolder();
  const PREFIX = "model.layers.0.mlp.up_proj";
  const WEIGHT = `${PREFIX}.weight`;
  const SCALE = `${PREFIX}.weight_scale`;

  interface Wrong {
    readonly what: string;
    readonly settings?: Readonly<Record<string, unknown>>;
    readonly change?: (tensors: Map<string, StoredTensor>) => void;
    readonly code: string;
    readonly names: RegExp;
  }

  const set = (name: string, change: (tensor: StoredTensor) => Partial<StoredTensor>) => {
    return (tensors: Map<string, StoredTensor>): void => {
      const tensor = tensors.get(name) ?? assert.fail(name);
      tensors.set(name, { ...tensor, ...change(tensor) });
    };
  };
  const withFloat =
    (value: number) =>
    ({ bytes }: StoredTensor) => {
      const floats = new Float32Array(Uint8Array.from(bytes).buffer);
      floats[floats.length - 1] = value;
      return { bytes: new Uint8Array(floats.buffer) };
    };

  const cases: readonly Wrong[] = [
    ...[undefined, null, 0, -1, 2.5, "32", [32], 2 ** 60].map((block_rows) => ({
      what: `block_rows ${JSON.stringify(block_rows)}`,
      settings: { block_rows },
      code: "INVALID_CONFIG",
      names: /block_rows: expected a whole number above 0/,
    })),
    {
      what: "another block_rows than the scales are for",
      settings: { block_rows: 64 },
      code: "SHAPE_MISMATCH",
      names: /weight_scale.*expected 2 along dimension 0.*received 4/,
    },
    {
      what: "a code that is none, in the last byte",
      change: set(WEIGHT, ({ bytes }) => ({ bytes: Uint8Array.from(bytes).fill(0xc0, bytes.length - 1) })),
      code: "INVALID_CODE",
      names: /gate_up_proj\.weight: expected codes 0 to 2 but received 3/,
    },
    ...[Number.NaN, Number.POSITIVE_INFINITY].map((value) => ({
      what: `a scale of ${value}`,
      change: set(SCALE, withFloat(value)),
      code: "NON_FINITE_SCALE",
      names: new RegExp(`gate_up_proj\\.weight_scale: expected finite scales but received ${value}`),
    })),
    {
      what: "no scales for a part",
      change: (tensors) => tensors.delete(SCALE),
      code: "MISSING_TENSOR",
      names: /up_proj\.weight_scale \(shard 1\)/,
    },
    {
      what: "scales without a weight",
      change: (tensors) => tensors.delete(WEIGHT),
      code: "MISSING_TENSOR",
      names: /up_proj\.weight \(shard 1\)/,
    },
    {
      what: "scales that are no matrix",
      change: set(SCALE, ({ shape }) => ({ shape: shape.slice(0, 1) })),
      code: "SHAPE_MISMATCH",
      names: /up_proj\.weight_scale/,
    },
    {
      what: "scales of another type",
      change: set(SCALE, () => ({ dtype: "i32" })),
      code: "DTYPE_MISMATCH",
      names: /up_proj\.weight_scale: expected f32.*i32/,
    },
    {
      what: "codes of another type",
      change: set(WEIGHT, () => ({ dtype: "i8" })),
      code: "DTYPE_MISMATCH",
      names: /up_proj\.weight: expected u8.*i8/,
    },
    {
      what: "codes in another shape",
      change: set(WEIGHT, ({ shape: [rows = 0, bytes = 0] }) => ({ shape: [2 * rows, bytes / 2] })),
      code: "SHAPE_MISMATCH",
      names: /up_proj\.weight: expected 32 along dimension 1/,
    },
    {
      what: "a part that is not ternary beside one that is",
      change: (tensors) => {
        const plain = tensorsOf(fixture("tiny/llama/bf16")).get(WEIGHT) ?? assert.fail();
        tensors.set(WEIGHT, plain);
        tensors.delete(SCALE);
      },
      code: "SHAPE_MISMATCH",
      names: /up_proj\.weight/,
    },
    {
      what: "scales of something that no layer is",
      change: (tensors) => tensors.set("model.layers.9.mlp.up_proj.weight_scale", tensors.get(SCALE) ?? assert.fail()),
      code: "UNEXPECTED_TENSOR",
      names: /model\.layers\.9\.mlp\.up_proj\.weight_scale/,
    },
  ];

  for (const { what, settings = {}, change, code, names } of cases) {
    it(`${what}: ${code}`, async () => {
      const { path } = writeTernaryModel(fixture("tiny/llama/bf16"), join(folder.path, "right"), { blockRows: 32 });
      const tensors = tensorsOf(path);
      change?.(tensors);
      const quantization_config = { quant_method: "ternary", block_rows: 32, ...settings };
      const config = { ...configOf(path), quantization_config };
      const model = writeModel(join(folder.path, "wrong"), config, tensors);
      await assert.rejects(simulate({ model, worldSize: 2, plugins: [plugin] }), (error) => {
        assert.ok(error instanceof ShardloomError, String(error));
        assert.equal(error.code, code, error.message);
        assert.match(error.message, names);
        return true;
      });
    });
  }

  it("a model that is not ternary cannot be made so while it is loaded: INVALID_CONFIG", async () => {
    const options = { model: fixture("tiny/llama/bf16"), worldSize: 1, plugins: [plugin], quantization: "ternary" };
    await assert.rejects(
      simulate(options),
      (error) => error instanceof ShardloomError && error.code === "INVALID_CONFIG",
    );
  });
});

describe("the ternary plugin: a package", () => {
  const folder = workFolder();

  it("is found by its name, by --plugin or in SHARDLOOM_PLUGINS, and answers alike on worker threads", async () => {
    const { path: model } = writeTernaryModel(fixture("tiny/phi3/bf16"), join(folder.path, "model"), {
      blockRows: 32,
      fused: PHI3_FUSED,
    });
    const simulation = await simulate({ model, worldSize: 3, plugins: [plugin] });
    const expected = simulation.generate([7, 11, 13], 12).tokenIds;
    await simulation.close();

    const installed = join(folder.path, "node_modules", "shardloom-plugin-ternary");
    mkdirSync(installed, { recursive: true });
    symlinkSync(root, join(folder.path, "node_modules", "shardloom"));
    for (const name of ["package.json", "index.ts"]) {
      copyFileSync(join(root, "test/tutorial/ternary-plugin", name), join(installed, name));
    }
    // As docs/quantization-plugin.md has its readers compile it.
    const [, flags = ""] =
      /^npx tsc (.*)$/m.exec(readFileSync(join(root, "docs/quantization-plugin.md"), "utf8")) ?? [];
    execFileSync(process.execPath, [tsc, ...flags.split(" ")], { cwd: installed, stdio: "pipe" });

    const generate = [
      "generate",
      "--model",
      model,
      "--tp",
      "3",
      "--prompt-ids",
      "7,11,13",
      "--max-tokens",
      "12",
      "--json",
    ];
    const runs = [
      cli([...generate, "--plugin", "shardloom-plugin-ternary"], { cwd: folder.path }),
      cli(generate, { cwd: folder.path, env: { SHARDLOOM_PLUGINS: "shardloom-plugin-ternary" } }),
    ];
    for (const { stdout, stderr } of await Promise.all(runs)) {
      assert.equal(stderr, "");
      assert.deepEqual(JSON.parse(stdout).outputs[0].token_ids, expected);
    }
  });
});
