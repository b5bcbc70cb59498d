/**
 * Models in bitsandbytes' formats, through @shardloom/bitsandbytes: what every linear layer multiplies with is what
 * bitsandbytes dequantizes, to the bit and at every world size; and what the models generate is what transformers does.
 */
import assert from "node:assert/strict";
import { plugin } from "@shardloom/bitsandbytes";
import type { Checkpoint } from "../../src/checkpoint/checkpoint.js";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import { convertFloats, dtypeBytes, isFloat } from "../../src/core/dtype.js";
import { PartitionError } from "../../src/core/errors.js";
import type { JsonObject } from "../../src/core/json.js";
import { elementCount } from "../../src/core/tensor.js";
import { planCapacity } from "../../src/engine/capacity.js";
import { type Engine, launch } from "../../src/index.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import type { LinearModule } from "../../src/layers/layer-context.js";
import { createRegistries, registerPlugin } from "../../src/loading/plugins.js";
import { selectFamily } from "../../src/models/registry.js";
import type { LinearLayer, LinearPart } from "../../src/quantization/contract.js";
import { loadRankModel } from "../../src/rank/rank-model.js";
import { compareShard } from "../../src/testing/layers.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, expectNearGolden, readGolden } from "./golden.js";
import { engineInTurns } from "./in-turns.js";

/** Differences of f32 summation order reach some 1e-5 in these models; the bound is the project's promise. */
const TOLERANCE = 1e-3;

const WORLD_SIZES = [1, 2, 3, 4, 5, 8];

interface Variant {
  readonly name: string;
  /** Whose dequantized weights it has; its own by default. */
  readonly oracle?: string;
  /** What makes it of the bf16 model while loading; null where nothing does. */
  readonly inFlight: JsonObject | null;
}

const nf4: Variant = { name: "nf4", inFlight: { type: "nf4" } };

/** What each model is made to show stands in test/fixtures/README.md. */
const models: readonly { readonly name: string; readonly largest: number; readonly variants: readonly Variant[] }[] = [
  {
    name: "llama",
    largest: 4,
    variants: [
      nf4,
      { name: "nf4-dq", inFlight: { type: "nf4", doubleQuant: true } },
      { name: "fp4", inFlight: { type: "fp4" } },
      { name: "int8", inFlight: { type: "int8" } },
      { name: "nf4-storage-bf16", oracle: "nf4", inFlight: null },
    ],
  },
  {
    name: "llama-uneven",
    largest: 6,
    variants: [nf4, { name: "nf4-skip", inFlight: { skipModules: ["model.layers.0.mlp.down_proj"] } }],
  },
  { name: "qwen2", largest: 4, variants: [nf4] },
  { name: "qwen3", largest: 6, variants: [nf4] },
  { name: "mistral", largest: 8, variants: [nf4] },
  { name: "phi3", largest: 6, variants: [nf4] },
];

/** The linear layers of every rank, loaded as in production. */
async function loadLinears(path: string, worldSize: number, inFlight: JsonObject | null): Promise<LinearModule[]> {
  const registries = createRegistries();
  registerPlugin(registries, plugin);
  const loader = registries.modelLoaders.select(path);
  const description = await loader.describe(path);
  const config = selectFamily(description.config).parseConfig(description.config);
  const capacity = planCapacity(config, { maxTokensPerStep: 8, maxSequences: 1 }, worldSize, "f32");
  const choice = inFlight === null ? null : { method: "bitsandbytes", options: inFlight };
  const options = {
    path,
    loadFormat: loader.format,
    description,
    worldSize,
    dtype: config.dtype,
    kvCacheDtype: "f32",
    activations: "f32",
    quantization: registries.quantization.select(description.config, choice),
    ...capacity,
  } as const;
  const linears: LinearModule[] = [];
  for (let rank = 0; rank < worldSize; rank++) {
    const { context } = await loadRankModel(options, rank, { registries, kernels: createReferenceKernels() });
    linears.push(...context.linears);
  }
  return linears;
}

/** Values of whole tensors as f32: the dequantized ones of the oracle, and those that were never quantized. */
class Oracle {
  readonly #dequantized: Checkpoint;
  readonly #plain: Checkpoint;
  readonly #values = new Map<string, Float32Array>();

  constructor(model: string, { name, oracle = name }: Variant) {
    this.#dequantized = SafetensorsFile.open(fixture(`tiny/${model}/${oracle}.dequantized.safetensors`));
    this.#plain = SafetensorsDirectory.open(fixture(`tiny/${model}/bf16`));
  }

  get size(): number {
    return this.#dequantized.tensors.size;
  }

  wholeOf(part: LinearPart, layer: LinearLayer): Float32Array {
    const own = this.#read(`${part.prefix}.weight`);
    if (own !== null) return own;
    const fused = this.#read(`${layer.prefix}.weight`) ?? assert.fail(`no oracle for ${part.prefix}`);
    const before = layer.parts.slice(0, layer.parts.indexOf(part));
    return fused.subarray(before.reduce((sum, { outputSize }) => sum + outputSize, 0) * layer.inputSize);
  }

  #read(name: string): Float32Array | null {
    const known = this.#values.get(name);
    if (known !== undefined) return known;
    const tensor = this.#dequantized.tensors.get(name) ?? this.#plain.tensors.get(name);
    if (tensor === undefined || !isFloat(tensor.dtype)) return null;
    const count = elementCount(tensor.shape);
    const bytes = new Uint8Array(count * dtypeBytes(tensor.dtype));
    tensor.read(bytes, 0);
    const values = new Float32Array(count);
    convertFloats(bytes, tensor.dtype, new Uint8Array(values.buffer), "f32", name);
    this.#values.set(name, values);
    return values;
  }

  close(): void {
    this.#dequantized.close();
    this.#plain.close();
  }
}

function expectOracle(linears: readonly LinearModule[], oracle: Oracle): void {
  let quantized = 0;
  for (const linear of linears) {
    assert.equal(
      compareShard(linear, (part, layer) => oracle.wholeOf(part, layer)),
      null,
    );
    if (linear.method.executionWeights().some(({ weight }) => weight.format !== "dense")) quantized++;
  }
  // A fused layer has up to three of the oracle's tensors: at least a third as many layers are quantized.
  assert.ok(quantized * 3 >= oracle.size, `${quantized} quantized layers`);
}

describe("weights of bitsandbytes, to the bit", () => {
  for (const { name: model, largest, variants } of models) {
    for (const variant of variants) {
      for (const worldSize of WORLD_SIZES) {
        if (worldSize > largest) {
          it(`${model}/${variant.name} cannot be split over ${worldSize} ranks`, async () => {
            await assert.rejects(
              loadLinears(fixture(`tiny/${model}/${variant.name}`), worldSize, null),
              PartitionError,
            );
          });
          continue;
        }
        it(`${model}/${variant.name} at ${worldSize} ranks: every shard is its slice of what bitsandbytes dequantizes`, async () => {
          const oracle = new Oracle(model, variant);
          expectOracle(await loadLinears(fixture(`tiny/${model}/${variant.name}`), worldSize, null), oracle);
          oracle.close();
        });
        const { inFlight } = variant;
        if (inFlight === null) continue;
        it(`${model}/bf16 at ${worldSize} ranks, quantized while loading: the same as ${variant.name}`, async () => {
          const oracle = new Oracle(model, variant);
          expectOracle(await loadLinears(fixture(`tiny/${model}/bf16`), worldSize, inFlight), oracle);
          oracle.close();
        });
      }
    }
  }
});

describe("quantized models against transformers", () => {
  for (const { name: model, largest, variants } of models) {
    for (const { name: variant } of variants) {
      const golden = readGolden(fixture(`tiny/${model}/${variant}.golden.json`));
      for (const worldSize of [1, 2, 3, 4].filter((size) => size <= largest)) {
        it(`${model}/${variant} at ${worldSize} ranks: the greedy tokens equal, the logits within ${TOLERANCE}`, async () => {
          const engine = await engineInTurns(fixture(`tiny/${model}/${variant}`), { worldSize, plugins: [plugin] });
          for (const prompt of golden.prompts) {
            const sampling = { maxTokens: prompt.generatedIds.length, logprobs: 20 };
            const answer = await collect(engine, prompt.promptIds, sampling);
            expectGolden(answer, prompt, TOLERANCE, `prompt of ${prompt.promptIds.length}`);
          }
        });
      }
    }
  }

  it("llama/bf16 quantized while loading answers as llama/nf4-dq does", async () => {
    const golden = readGolden(fixture("tiny/llama/nf4-dq.golden.json"));
    const quantization = { method: "bitsandbytes", options: { type: "nf4", doubleQuant: true } };
    const engine = await engineInTurns(fixture("tiny/llama/bf16"), { worldSize: 3, plugins: [plugin], quantization });
    for (const prompt of golden.prompts) {
      const answer = await collect(engine, prompt.promptIds, { maxTokens: prompt.generatedIds.length, logprobs: 20 });
      expectGolden(answer, prompt, TOLERANCE, `prompt of ${prompt.promptIds.length}`);
    }
  });
});

describe("an output head in int8 beside layers in NF4", () => {
  for (const [model, kind] of [
    ["llama", "tied"],
    ["llama-uneven", "untied"],
  ] as const) {
    it(`${model}, ${kind}: near the golden of NF4, and the same at any world size`, async () => {
      const golden = readGolden(fixture(`tiny/${model}/nf4.golden.json`));
      const [, prompt] = golden.prompts;
      assert.ok(prompt !== undefined);
      const quantization = { method: "bitsandbytes", options: { type: "nf4", headType: "int8" } };
      const answers = [];
      for (const worldSize of [1, 2, 3]) {
        const options = { worldSize, plugins: [plugin], quantization };
        const engine = await engineInTurns(fixture(`tiny/${model}/bf16`), options);
        const answer = await collect(engine, prompt.promptIds, { maxTokens: prompt.generatedIds.length, logprobs: 20 });
        expectNearGolden(answer, prompt, { logprob: 0.25, margin: 0.25 }, `${worldSize} ranks`);
        answers.push(answer);
      }
      const [alone, ...others] = answers;
      for (const answer of others) {
        assert.deepEqual(answer.tokenIds, alone?.tokenIds);
        answer.logprobs.forEach(({ top }, step) => {
          const likeliest = top[0]?.logprob ?? Number.NaN;
          const difference = likeliest - (alone?.logprobs[step]?.top[0]?.logprob ?? Number.NaN);
          assert.ok(Math.abs(difference) <= TOLERANCE, `step ${step}: ${difference}`);
        });
      }
    });
  }
});

describe("LLM.int8 with quantized activations", () => {
  const golden = readGolden(fixture("tiny/llama/int8.golden.json"));
  const [, prompt] = golden.prompts;
  const sampling = { maxTokens: 12, logprobs: 20 };

  async function answerAt(worldSize: number) {
    const quantization = { method: "bitsandbytes", options: { int8Activations: true, outlierThreshold: 2 } };
    const options = { worldSize, plugins: [plugin], quantization, kernels: createReferenceKernels() };
    const engine = await engineInTurns(fixture("tiny/llama/int8"), options);
    return collect(engine, prompt?.promptIds ?? assert.fail(), sampling);
  }

  it("every world size gives the same tokens and the same logits, to the bit", async () => {
    const alone = await answerAt(1);
    for (const worldSize of [2, 3, 4]) assert.deepEqual(await answerAt(worldSize), alone);
  });

  it("is near what the dequantized weights give, and not the same", async () => {
    const { logprobs } = await answerAt(1);
    const [step] = prompt?.steps ?? assert.fail();
    const received = new Map(logprobs[0]?.top.map(({ id, logprob }) => [id, logprob]));
    const differences = (step?.top ?? []).flatMap(([id, logit]) => {
      const logprob = received.get(id);
      return logprob === undefined ? [] : [Math.abs(logprob - (logit - (step?.logsumexp ?? 0)))];
    });
    assert.ok(differences.length >= 10);
    const largest = Math.max(...differences);
    assert.ok(largest > 1e-4 && largest < 0.5, `${largest}`);
  });
});

describe("quantized models on worker threads", () => {
  for (const [variant, options] of [
    ["nf4-dq", {}],
    ["int8", { int8Activations: true }],
  ] as const) {
    it(`llama/${variant} at 2 ranks, ${JSON.stringify(options)}`, async () => {
      const golden = readGolden(fixture(`tiny/llama/${variant}.golden.json`));
      const [, prompt] = golden.prompts;
      const model = fixture(`tiny/llama/${variant}`);
      const quantization = { method: "bitsandbytes", options };
      const inTurns = await engineInTurns(model, { worldSize: 2, plugins: [plugin], quantization });
      let engine: Engine | undefined;
      try {
        engine = await launch({
          model,
          tensorParallelSize: 2,
          plugins: ["@shardloom/bitsandbytes"],
          quantization: "bitsandbytes",
          quantizationOptions: options,
          activations: "f32",
        });
        const sampling = { maxTokens: 12, logprobs: 5 };
        const ids = prompt?.promptIds ?? assert.fail();
        const answer = await collect(engine, ids, sampling);
        assert.deepEqual(answer, await collect(inTurns, ids, sampling));
        if (variant === "nf4-dq") assert.deepEqual(answer.tokenIds, prompt?.generatedIds.slice(0, 12));
      } finally {
        await engine?.close();
      }
    });
  }
});
