import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Engine, launch } from "../../src/index.js";
import { loadPlugins, resolvePlugin } from "../../src/loading/plugins.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, expectNearGolden, type GoldenPrompt, readGolden } from "./golden.js";
import { copyAsSafetensors } from "./safetensors-copy.js";

/** Path of the sample model, fetched if need be. Without a network there is none, which only CI may not accept. */
function sampleModel(context: Mocha.Context): string {
  const script = fileURLToPath(new URL("../../../scripts/fetch-sample-model.mjs", import.meta.url));
  try {
    return execFileSync(process.execPath, [script], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
  } catch (error) {
    if (process.env["CI"] !== undefined) throw error;
    console.warn(`      the sample model cannot be had: ${error instanceof Error ? error.message : String(error)}`);
    return context.skip();
  }
}

/** The weights of a .gguf file as a safetensors directory of bf16, which is what the goldens were computed from. */
async function roundToBf16(path: string, directory: string): Promise<void> {
  const { modelLoaders } = await loadPlugins([resolvePlugin("@shardloom/gguf")]);
  await copyAsSafetensors(modelLoaders.select(path), path, directory, "bf16");
}

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
        engine = await launch({ model: rounded, tensorParallelSize });
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
        engine = await launch({ model: path, tensorParallelSize, plugins: ["@shardloom/gguf"] });
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
