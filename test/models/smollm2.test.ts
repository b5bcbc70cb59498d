import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Engine, launch } from "../../src/index.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, expectNearGolden, type GoldenPrompt, readGolden } from "./golden.js";
import { roundToBf16, sampleModel } from "./sample-model.js";

/**
 * The file's own weights are not rounded to bf16. Computed from its values widened to f32, the largest difference that
 * this makes is 0.081 in a log-probability and 0.11 between two logits of a step.
 */
const UNROUNDED = { logprob: 0.12, margin: 0.2 };

describe("SmolLM2-135M-Instruct on worker threads, against transformers", () => {
  const golden = readGolden(fixture("smollm2/bf16.golden.json"));
  let path: string;
  let rounded = "";
  before(async function () {
    path = sampleModel(this);
    rounded = mkdtempSync(join(tmpdir(), "shardloom-smollm2-"));
    await roundToBf16(path, rounded);
  });
  after(() => {
    if (rounded !== "") rmSync(rounded, { recursive: true, force: true });
  });

  const samplingOf = ({ generatedIds }: GoldenPrompt) => {
    return { maxTokens: generatedIds.length, logprobs: 20, ignoreEndOfSequence: true, skipSpecialTokens: false };
  };

  for (const tensorParallelSize of [1, 2, 3]) {
    describe(`in bf16 at ${tensorParallelSize} ranks`, () => {
      let engine: Engine;
      before(async () => {
        engine = await launch({ model: rounded, tensorParallelSize, activations: "f32" });
      });
      after(() => engine.close());

      for (const prompt of golden.prompts) {
        it(`answers "${prompt.name}" with the golden greedy tokens and logits`, async () => {
          const answer = await collect(engine, prompt.promptIds, samplingOf(prompt));
          expectGolden(answer, prompt, 1e-3, prompt.name ?? "");
          assert.equal(answer.text, prompt.generatedText);
        });
      }

      it("answers all prompts at once as it answers each alone", async () => {
        const answers = golden.prompts.map(async (prompt) => {
          const sampling = { maxTokens: prompt.generatedIds.length, ignoreEndOfSequence: true };
          assert.deepEqual((await collect(engine, prompt.promptIds, sampling)).tokenIds, prompt.generatedIds);
        });
        await Promise.all(answers);
      });
    });

    describe(`as the quantized GGUF file at ${tensorParallelSize} ranks`, () => {
      let engine: Engine;
      before(async () => {
        engine = await launch({ model: path, tensorParallelSize, plugins: ["@shardloom/gguf"], activations: "f32" });
      });
      after(() => engine.close());

      it("answers with the golden tokens wherever their lead says so, and with logits near the golden ones", async () => {
        const answers = golden.prompts.map(async (prompt) => {
          const answer = await collect(engine, prompt.promptIds, samplingOf(prompt));
          expectNearGolden(answer, prompt, UNROUNDED, prompt.name ?? "");
        });
        await Promise.all(answers);
      });
    });
  }

  // What bitsandbytes makes of the bf16 weights, made here while they are loaded.
  const bitsandbytes = (quantizationOptions: { type: string; doubleQuant?: boolean }) => {
    return { plugins: ["@shardloom/bitsandbytes"], quantization: "bitsandbytes", quantizationOptions };
  };

  for (const tensorParallelSize of [1, 2, 3]) {
    it(`in NF4 with double quantization at ${tensorParallelSize} ranks answers with the golden tokens and logits`, async () => {
      const nf4 = readGolden(fixture("smollm2/nf4-dq.golden.json"));
      const options = bitsandbytes({ type: "nf4", doubleQuant: true });
      const engine = await launch({ model: rounded, tensorParallelSize, activations: "f32", ...options });
      try {
        const answers = nf4.prompts.map(async (prompt) => {
          const answer = await collect(engine, prompt.promptIds, samplingOf(prompt));
          expectGolden(answer, prompt, 1e-3, prompt.name ?? "");
        });
        await Promise.all(answers);
      } finally {
        await engine.close();
      }
    });
  }

  for (const { name, ...options } of [
    { name: "nf4-dq", type: "nf4", doubleQuant: true },
    { name: "fp4", type: "fp4" },
    { name: "int8", type: "int8" },
  ]) {
    it(`scores the golden text in ${name} within 0.2% of the golden negative log-likelihood`, async () => {
      const { ids, results } = JSON.parse(readFileSync(fixture("smollm2/nll.json"), "utf8"));
      const engine = await launch({ model: rounded, tensorParallelSize: 2, ...bitsandbytes(options) });
      try {
        const { nllMean } = await engine.score(ids);
        const expected: number = results[name].meanNll;
        console.log(`      mean negative log-likelihood ${nllMean}, golden ${expected}`);
        assert.ok(Math.abs(nllMean - expected) <= 0.002 * expected, `${nllMean} against ${expected}`);
      } finally {
        await engine.close();
      }
    });
  }

  it("scores the golden text in bf16, activations as the CPU takes them, within 0.02% of the golden negative log-likelihood", async () => {
    const { ids, results } = JSON.parse(readFileSync(fixture("smollm2/nll.json"), "utf8"));
    const engine = await launch({ model: rounded });
    try {
      const { nllMean } = await engine.score(ids);
      const expected: number = results.bf16.meanNll;
      assert.ok(Math.abs(nllMean - expected) <= 0.0002 * expected, `${nllMean} against ${expected}`);
    } finally {
      await engine.close();
    }
  });

  describe("as the quantized GGUF file, text", () => {
    let engine: Engine;
    before(async () => {
      engine = await launch({ model: path, tensorParallelSize: 2, plugins: ["@shardloom/gguf"] });
    });
    after(() => engine.close());

    it("tokenizes texts and writes chats as transformers does", async () => {
      for (const { text, messages, promptIds } of golden.prompts) {
        const request = messages === undefined ? { prompt: text } : { messages };
        for await (const delta of engine.generate({ ...request, sampling: { maxTokens: 1 } })) {
          if (delta.promptTokenIds !== undefined) assert.deepEqual(delta.promptTokenIds, promptIds);
        }
      }
    });

    it("scores the golden text within 0.2% of the golden negative log-likelihood", async () => {
      const { ids, results } = JSON.parse(readFileSync(fixture("smollm2/nll.json"), "utf8"));
      const { nllMean, nll } = await engine.score(ids);
      assert.equal(nll.length, ids.length - 1);
      const golden: number = results.bf16.meanNll;
      assert.ok(Math.abs(nllMean - golden) <= 0.002 * golden, `${nllMean} against ${golden}`);
      console.log(`      mean negative log-likelihood ${nllMean}, golden ${golden}`);
    });
  });
});
