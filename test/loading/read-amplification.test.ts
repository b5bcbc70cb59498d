/**
 * One read a byte: over all ranks together a checkpoint is read about once, at any number of ranks, and what the ranks hold
 * is what each of them would have read for itself, bit for bit.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { plugin as bitsandbytes } from "@shardloom/bitsandbytes";
import { plugin as gguf } from "@shardloom/gguf";
import { madeUpMix, writeMadeUpModel } from "../../bench/models/made-up-model.js";
import type { ModelShape } from "../../bench/models/shapes.js";
import { sharedReadsInTurns } from "../../src/checkpoint/shared-reads.js";
import { weightBytes } from "../../src/checkpoint/weight-bytes.js";
import type { JsonObject } from "../../src/core/json.js";
import { bytesOf } from "../../src/core/tensor.js";
import { launch, quantize, shard } from "../../src/index.js";
import { dummyCheckpoint } from "../../src/loading/dummy-loader.js";
import { selectFamily } from "../../src/models/registry.js";
import { expectedWeights } from "../../src/rank/expected-weights.js";
import type { RankModel } from "../../src/rank/rank-model.js";
import { type LoadRanksOptions, loadRanks, type StoredTensor, writeModel } from "./rewritten-model.js";

/** What may be read, by the size of the checkpoint. */
const MOST = 1.02;

/** SmolLM2-135M, four times as narrow: nine heads share three KV heads, and no power of two divides it. */
const SMALL: ModelShape = {
  name: "small",
  hidden: 144,
  intermediate: 384,
  layers: 2,
  heads: 9,
  kvHeads: 3,
  headSize: 16,
  vocabulary: 200,
  contextLength: 128,
  ropeTheta: 10_000,
  tied: true,
};

/** One layer of SmolLM2-135M: its norms, and what a format keeps beside a weight, are little beside its weights. */
const LARGE: ModelShape = {
  ...SMALL,
  name: "large",
  hidden: 576,
  intermediate: 1536,
  headSize: 64,
  layers: 1,
  vocabulary: 6000,
};

function configOf(shape: ModelShape): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    hidden_act: "silu",
    hidden_size: shape.hidden,
    head_dim: shape.headSize,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    num_hidden_layers: shape.layers,
    intermediate_size: shape.intermediate,
    vocab_size: shape.vocabulary,
    max_position_embeddings: shape.contextLength,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: shape.tied,
    torch_dtype: "bfloat16",
  };
}

function writeSafetensors(directory: string, shape: ModelShape): string {
  const config = JSON.parse(JSON.stringify(configOf(shape)));
  const { tensors } = dummyCheckpoint(expectedWeights(selectFamily(config), config, 1));
  const stored = [...tensors.values()].map((tensor): [string, StoredTensor] => {
    const bytes = new Uint8Array(tensor.shape.reduce((product, extent) => product * extent, 2));
    tensor.read(bytes, 0);
    return [tensor.name, { dtype: tensor.dtype, shape: tensor.shape, bytes }];
  });
  return writeModel(directory, config, new Map(stored));
}

/** The bytes of all parameters, by rank and name. */
function parametersOf(ranks: readonly RankModel[]): Map<string, Buffer> {
  return new Map(
    ranks.flatMap(({ rank, context }) =>
      context.parameters.map(({ name, tensor }) => [`${rank} ${name}`, Buffer.from(bytesOf(tensor))] as const),
    ),
  );
}

function inFlight(options: JsonObject): LoadRanksOptions {
  return { plugins: [bitsandbytes], choice: { method: "bitsandbytes", options } };
}

interface Format {
  readonly name: string;
  readonly path: () => string;
  readonly worldSizes: readonly number[];
  readonly options?: LoadRanksOptions;
}

describe("one read a byte", function () {
  this.timeout(120_000);
  let folder = "";
  const at = (name: string): string => join(folder, name);

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "shardloom-reads-"));
    writeSafetensors(at("bf16"), SMALL);
    for (const mix of ["BF16", "Q4_1", "Q8_0"]) writeMadeUpModel(at(`${mix}.gguf`), LARGE, madeUpMix(mix));
    const options = { model: at("bf16"), plugins: ["@shardloom/bitsandbytes"], threads: 1 };
    await quantize({ ...options, format: "int8", out: at("int8") });
    const wide = { ...LARGE, hidden: 768, intermediate: 768, heads: 12 };
    writeMadeUpModel(at("Q6_K.gguf"), wide, { name: "Q6_K", layers: "Q6_K", head: "Q6_K" });
    writeSafetensors(at("large"), LARGE);
    await quantize({ ...options, model: at("large"), format: "nf4", out: at("nf4") });
    await shard({ ...options, model: at("nf4"), tensorParallelSize: 3, out: at("state") });
    const doubleQuant = { doubleQuant: true };
    await quantize({ ...options, model: at("large"), format: "nf4", out: at("nf4-dq"), options: doubleQuant });
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  const upToNine = [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const formats: readonly Format[] = [
    { name: "safetensors", path: () => at("bf16"), worldSizes: upToNine },
    { name: "safetensors as f32", path: () => at("bf16"), worldSizes: [6], options: { dtype: "f32" } },
    { name: ".gguf in BF16", path: () => at("BF16.gguf"), worldSizes: [2, 6], options: { plugins: [gguf] } },
    { name: ".gguf in Q4_1", path: () => at("Q4_1.gguf"), worldSizes: [2, 5, 9], options: { plugins: [gguf] } },
    // 3 blocks of 256 inputs, in as many parts.
    { name: ".gguf in Q6_K", path: () => at("Q6_K.gguf"), worldSizes: [2, 5, 8], options: { plugins: [gguf] } },
    { name: ".gguf in Q8_0", path: () => at("Q8_0.gguf"), worldSizes: [6], options: { plugins: [gguf] } },
    { name: "NF4", path: () => at("nf4"), worldSizes: [6, 9], options: { plugins: [bitsandbytes] } },
    { name: "NF4, nested", path: () => at("nf4-dq"), worldSizes: [2, 5, 9], options: { plugins: [bitsandbytes] } },
    { name: "NF4 in flight", path: () => at("large"), worldSizes: [2, 9], options: inFlight({ type: "nf4" }) },
    {
      name: "NF4 in flight, nested",
      path: () => at("large"),
      worldSizes: [2, 6],
      options: inFlight({ type: "nf4", doubleQuant: true }),
    },
    { name: "INT8 in flight", path: () => at("large"), worldSizes: [2, 9], options: inFlight({ type: "int8" }) },
    { name: "a sharded state of NF4", path: () => at("state"), worldSizes: [2, 3, 9] },
    { name: "INT8", path: () => at("int8"), worldSizes: [2, 6, 9], options: { plugins: [bitsandbytes] } },
  ];
  for (const [what, options] of [
    ["as it is", {}],
    ["quantized while it is loaded", { quantization: "bitsandbytes", quantizationOptions: { doubleQuant: true } }],
  ] as const) {
    it(`is what a profile shows of nine worker threads: a checkpoint ${what}`, async () => {
      const plugins = ["@shardloom/bitsandbytes"];
      const model = at("large");
      const engine = await launch({ model, plugins, tensorParallelSize: 9, loadProfile: true, ...options });
      await engine.close();
      const amplification = engine.loadProfile?.readAmplification ?? Number.NaN;
      assert.ok(amplification > 0.97 && amplification <= MOST, `received ${amplification.toFixed(3)}`);
    });
  }

  for (const { name, path, worldSizes, options = {} } of formats) {
    for (const worldSize of worldSizes) {
      it(`${name} at ${worldSize} ranks`, async () => {
        const alone = await loadRanks(path(), worldSize, options);
        const together = await loadRanks(path(), worldSize, { ...options, shared: sharedReadsInTurns() });
        const bytesRead = together.reduce((sum, { report }) => sum + report.bytesRead, 0);
        const [expected, received] = [parametersOf(alone), parametersOf(together)];
        for (const [parameter, bytes] of expected) assert.ok(received.get(parameter)?.equals(bytes), parameter);
        const amplification = bytesRead / weightBytes(path());
        assert.ok(amplification <= MOST, `expected at most ${MOST} but received ${amplification.toFixed(3)}`);
      });
    }
  }
});
