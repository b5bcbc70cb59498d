import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { type Engine, launch } from "../../src/index.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, readGolden } from "./golden.js";

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

describe("SmolLM2-135M-Instruct on worker threads, through the GGUF plugin, against transformers", () => {
  const golden = readGolden(fixture("smollm2/bf16.golden.json"));
  let path: string;
  before(function () {
    path = sampleModel(this);
  });

  for (const tensorParallelSize of [1, 2, 3]) {
    describe(`at ${tensorParallelSize} ranks`, () => {
      let engine: Engine;
      before(async () => {
        engine = await launch({ model: path, tensorParallelSize, plugins: ["@shardloom/gguf"] });
      });
      after(() => engine.close());

      for (const prompt of golden.prompts) {
        it(`answers "${prompt.name}" with the golden greedy tokens and logits`, async () => {
          const sampling = { maxTokens: prompt.generatedIds.length, logprobs: 20, ignoreEndOfSequence: true };
          const answer = await collect(engine, prompt.promptIds, { ...sampling, skipSpecialTokens: false });
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
  }

  describe("text", () => {
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
