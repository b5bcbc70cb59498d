import { createReferenceKernels } from "../../src/kernels/reference.js";
import { fixture } from "../fixture.js";
import { collect, expectGolden, readGolden } from "./golden.js";
import { engineInTurns } from "./in-turns.js";

/** Differences of f32 summation order reach some 1e-5 in these models; the bound is the project's promise. */
const TOLERANCE = 1e-3;

describe("llama against transformers", () => {
  // llama: 4 heads, 2 KV heads, tied. llama-uneven: 6 heads, 3 KV heads, untied, llama3 rope scaling, two files.
  const cases = [
    { model: "tiny/llama", worldSizes: [1, 2, 3, 4] },
    { model: "tiny/llama-uneven", worldSizes: [1, 2, 3, 4, 5, 6] },
  ];
  for (const { model, worldSizes } of cases) {
    const golden = readGolden(fixture(`${model}/bf16.golden.json`));
    for (const worldSize of worldSizes) {
      it(`${model} at ${worldSize} ranks: the greedy tokens equal, the logits within ${TOLERANCE}`, async () => {
        const engine = await engineInTurns(fixture(`${model}/bf16`), { worldSize });
        for (const prompt of golden.prompts) {
          const answer = await collect(engine, prompt.promptIds, {
            maxTokens: prompt.generatedIds.length,
            logprobs: 20,
          });
          expectGolden(answer, prompt, TOLERANCE, `prompt of ${prompt.promptIds.length}`);
        }
      });
    }

    it(`${model}: reference kernels, all prompts at once in chunks of 8 tokens`, async () => {
      const engine = await engineInTurns(fixture(`${model}/bf16`), {
        worldSize: 2,
        kernels: createReferenceKernels(),
        maxTokensPerStep: 8,
        maxSequences: 4,
        blockSize: 4,
      });
      const answers = golden.prompts.map(async (prompt) => {
        const answer = await collect(engine, prompt.promptIds, { maxTokens: prompt.generatedIds.length, logprobs: 20 });
        expectGolden(answer, prompt, TOLERANCE, `prompt of ${prompt.promptIds.length}`);
      });
      await Promise.all(answers);
    });
  }
});
