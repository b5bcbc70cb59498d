import assert from "node:assert/strict";
import { cli } from "./cli-process.js";
import { goldenPrompts, TINY_LLAMA, testFolder } from "./models.js";

describe("shardloom score", () => {
  const folder = testFolder();
  const [prompt] = goldenPrompts(TINY_LLAMA);
  assert.ok(prompt !== undefined);
  // transformers' values: the prompt is one token, so that all that is scored are its first greedy tokens.
  const ids = [...prompt.promptIds, ...prompt.generatedIds.slice(0, prompt.steps.length)];
  const nll = prompt.steps.map(({ top, logsumexp }) => logsumexp - (top[0]?.[1] ?? Number.NaN));
  const mean = nll.reduce((sum, value) => sum + value, 0) / nll.length;

  async function scoreJson(file: string, tp: number, input = "") {
    const flags = ["--tp", `${tp}`, "--activations", "f32", "--token-ids", file, "--json"];
    const args = ["score", "--model", TINY_LLAMA, ...flags];
    const { code, stdout, stderr } = await cli(args, { input });
    assert.equal(stderr, "");
    assert.equal(code, 0);
    return JSON.parse(stdout);
  }

  for (const tp of [1, 2]) {
    it(`--json prints the tokens scored and transformers' mean at --tp ${tp}`, async () => {
      const result = await scoreJson(folder.write("array.json", JSON.stringify(ids)), tp);
      assert.deepEqual(Object.keys(result), ["tokens", "nll_mean"]);
      assert.equal(result.tokens, ids.length - 1);
      assert.ok(Math.abs(result.nll_mean - mean) < 1e-3, `expected ${mean} but received ${result.nll_mean}`);
    });
  }

  it("takes ids as an array, under a key of an object, as text, and from stdin", async () => {
    const expected = await scoreJson(folder.write("array.json", JSON.stringify(ids)), 1);
    assert.deepEqual(await scoreJson(folder.write("object.json", JSON.stringify({ text: "t", ids })), 1), expected);
    assert.deepEqual(await scoreJson(folder.write("ids.txt", `${ids.join(", ")}\n`), 1), expected);
    assert.deepEqual(await scoreJson("-", 1, ids.join("\n")), expected);
  });

  it("without --json prints a line for people", async () => {
    const file = folder.write("array.json", JSON.stringify(ids));
    const { code, stdout } = await cli(["score", "--model", TINY_LLAMA, "--token-ids", file]);
    assert.equal(code, 0);
    assert.match(stdout, /^5 tokens, mean NLL \d\.\d+, perplexity \d+\.\d+\n$/);
  });
});
