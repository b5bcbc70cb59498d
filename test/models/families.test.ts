import { fixture } from "../fixture.js";
import { collect, expectGolden, readGolden } from "./golden.js";
import { engineInTurns } from "./in-turns.js";

/** Differences of f32 summation order reach some 1e-5 in these models; the bound is the project's promise. */
const TOLERANCE = 1e-3;

describe("model families against transformers", () => {
  // See test/fixtures/README.md for what each of them is made to show.
  const cases = [
    { model: "tiny/mistral", worldSizes: [1, 2, 3, 4, 8] },
    { model: "tiny/qwen2", worldSizes: [1, 2, 3, 4] },
    { model: "tiny/qwen3", worldSizes: [1, 2, 3, 4, 5] },
    { model: "tiny/phi3", worldSizes: [1, 2, 3, 4, 6] },
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
  }
});
