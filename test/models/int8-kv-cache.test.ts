import assert from "node:assert/strict";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { fixture } from "../fixture.js";
import { collect, expectNearGolden, readGolden } from "./golden.js";
import { engineInTurns, type InTurnsOptions } from "./in-turns.js";

/** What 8 bits may do to log-probabilities of these models, whose heads are small and whose scores are large. */
const BOUNDS = { logprob: 0.3, margin: 0.6 };

describe("a KV cache of int8", () => {
  for (const model of ["tiny/llama", "tiny/llama-uneven"]) {
    const golden = readGolden(fixture(`${model}/bf16.golden.json`));
    const answersOf = async (options: InTurnsOptions, together: boolean) => {
      const engine = await engineInTurns(fixture(`${model}/bf16`), { ...options, kvCacheDtype: "int8" });
      const answers = [];
      for (const prompt of golden.prompts) {
        const answer = collect(engine, prompt.promptIds, { maxTokens: prompt.generatedIds.length, logprobs: 20 });
        answers.push(together ? answer : await answer);
      }
      return await Promise.all(answers);
    };

    for (const worldSize of [1, 2, 3]) {
      it(`answers ${model} at ${worldSize} ranks nearly as floats do, alike alone, in batches and in chunks`, async () => {
        const alone = await answersOf({ worldSize }, false);
        for (const [i, prompt] of golden.prompts.entries()) {
          const answer = alone[i] ?? assert.fail("an answer is missing");
          expectNearGolden(answer, prompt, BOUNDS, `prompt of ${prompt.promptIds.length}`);
        }
        const chunked = { worldSize, maxTokensPerStep: 8, maxSequences: 4, blockSize: 4 };
        assert.deepEqual(await answersOf(chunked, true), alone);
      });
    }

    it(`answers ${model} alike with the reference kernels`, async () => {
      const answers = await answersOf({ worldSize: 2, kernels: createReferenceKernels() }, false);
      for (const [i, prompt] of golden.prompts.entries()) {
        const answer = answers[i] ?? assert.fail("an answer is missing");
        expectNearGolden(answer, prompt, BOUNDS, `prompt of ${prompt.promptIds.length}`);
      }
    });
  }
});
