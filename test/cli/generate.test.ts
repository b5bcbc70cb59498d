import assert from "node:assert/strict";
import { fixture } from "../fixture.js";
import { cli } from "./cli-process.js";
import { addTokenizer, goldenPrompts, TINY_LLAMA, testFolder, textOf } from "./models.js";

const UNEVEN = fixture("tiny/llama-uneven/bf16");

describe("shardloom generate", () => {
  const folder = testFolder();
  const prompts = goldenPrompts(TINY_LLAMA);

  async function generateJson(args: readonly string[]) {
    const { code, stdout, stderr } = await cli(["generate", "--json", ...args]);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    return JSON.parse(stdout);
  }

  for (const tp of [1, 2]) {
    it(`gives transformers' greedy tokens at --tp ${tp}`, async () => {
      for (const { promptIds, generatedIds } of prompts.slice(0, 3)) {
        const args = [
          "--model",
          TINY_LLAMA,
          "--tp",
          `${tp}`,
          "--prompt-ids",
          promptIds.join(","),
          "--max-tokens",
          "32",
        ];
        const { outputs } = await generateJson(args);
        assert.deepEqual(outputs[0].token_ids, generatedIds);
      }
    });
  }

  it("splits heads unevenly over three ranks, and names them in the report", async () => {
    const prompt = goldenPrompts(UNEVEN)[1];
    assert.ok(prompt !== undefined);
    const args = ["--model", UNEVEN, "--tp", "3", "--prompt-ids", prompt.promptIds.join(" "), "--max-tokens", "32"];
    const { tp, ranks, outputs } = await generateJson(args);
    assert.deepEqual(outputs[0].token_ids, prompt.generatedIds);
    assert.equal(tp, 3);
    assert.deepEqual(
      ranks.map(({ rank }: { rank: number }) => rank),
      [0, 1, 2],
    );
  });

  it("--json prints one object with the documented fields and no others", async () => {
    const report = await generateJson(["--model", TINY_LLAMA, "--tp", "2", "--prompt-ids", "433", "--max-tokens", "2"]);
    assert.deepEqual(Object.keys(report), ["model", "tp", "prompt_token_ids", "outputs", "timings", "ranks"]);
    assert.equal(report.model, TINY_LLAMA);
    assert.equal(report.tp, 2);
    assert.deepEqual(report.prompt_token_ids, [433]);
    assert.deepEqual(report.outputs, [{ token_ids: [38, 460], text: "", finish_reason: "length" }]);
    assert.deepEqual(Object.keys(report.timings), ["load_ms", "ttft_ms", "tpot_ms"]);
    for (const ms of Object.values(report.timings)) assert.ok(typeof ms === "number" && ms > 0, String(ms));
    assert.equal(report.ranks.length, 2);
    for (const rank of report.ranks) {
      assert.deepEqual(Object.keys(rank), ["rank", "load_ms", "bytes_read"]);
      assert.ok(rank.bytes_read > 0);
    }
  });

  it("--logprobs reports the likeliest tokens with transformers' log-probabilities", async () => {
    const prompt = ["--prompt-ids", "433", "--max-tokens", "5", "--logprobs", "4"];
    const args = ["--model", TINY_LLAMA, "--activations", "f32", ...prompt];
    const { outputs } = await generateJson(args);
    const steps = prompts[0]?.steps ?? [];
    assert.equal(outputs[0].logprobs.length, steps.length);
    for (const [i, { top, logsumexp }] of steps.entries()) {
      const received: { id: number; logprob: number }[] = outputs[0].logprobs[i];
      assert.deepEqual(
        received.map(({ id }) => id),
        top.slice(0, 4).map(([id]) => id),
      );
      for (const [j, { logprob }] of received.entries()) {
        const expected = (top[j]?.[1] ?? Number.NaN) - logsumexp;
        assert.ok(Math.abs(logprob - expected) < 1e-3, `step ${i}: expected ${expected} but received ${logprob}`);
      }
    }
  });

  it("--logprobs lists the token that was drawn even where it is not among the likeliest", async () => {
    const flags = ["--prompt-ids", "433", "--max-tokens", "8", "--temperature", "5", "--seed", "7", "--logprobs", "1"];
    const { outputs } = await generateJson(["--model", TINY_LLAMA, ...flags]);
    const { token_ids: ids, logprobs } = outputs[0];
    assert.ok(logprobs.some((entries: unknown[]) => entries.length === 2));
    for (const [i, entries] of logprobs.entries()) {
      assert.ok(entries.some(({ id }: { id: number }) => id === ids[i]));
      assert.ok(entries.length <= 2);
    }
  });

  it("draws the same tokens from the same seed, and others from another", async () => {
    const draw = async (seed: number): Promise<number[]> => {
      const flags = ["--prompt-ids", "433", "--max-tokens", "16", "--temperature", "1.5", "--seed", `${seed}`];
      return (await generateJson(["--model", TINY_LLAMA, ...flags])).outputs[0].token_ids;
    };
    const first = await draw(1);
    assert.deepEqual(await draw(1), first);
    assert.notDeepEqual(await draw(2), first);
  });

  it("ends at a token of --stop-token-ids, and counts it", async () => {
    const args = ["--model", TINY_LLAMA, "--prompt-ids", "433", "--stop-token-ids", "5,131"];
    const { outputs } = await generateJson(args);
    assert.deepEqual(outputs[0].token_ids, [38, 460, 131]);
    assert.equal(outputs[0].finish_reason, "stop");
  });

  it("streams text to stdout, and to stderr a line a rank and the speed", async () => {
    const model = folder.model("streams", addTokenizer);
    const { promptIds, generatedIds } = prompts[1] ?? { promptIds: [], generatedIds: [] };
    const args = ["generate", "--model", model, "--tp", "2", "--prompt", textOf(promptIds), "--max-tokens", "32"];
    const { code, stdout, stderr } = await cli(args);
    assert.equal(code, 0);
    assert.equal(stdout, `${textOf(generatedIds)}\n`);
    const lines = stderr.trimEnd().split("\n");
    assert.equal(lines.length, 3, stderr);
    assert.match(lines[0] ?? "", /^rank 0: read [\d.]+ kB, loaded in [\d.]+ m?s$/);
    assert.match(lines[1] ?? "", /^rank 1: read [\d.]+ kB, loaded in [\d.]+ m?s$/);
    assert.match(lines[2] ?? "", /^32 tokens \(length\), TTFT [\d.]+ m?s, TPOT [\d.]+ m?s, [\d.]+ tokens\/s$/);
  });

  it("answers with token ids where the model has no tokenizer", async () => {
    const { stdout } = await cli(["generate", "--model", TINY_LLAMA, "--prompt-ids", "433", "--max-tokens", "3"]);
    assert.equal(stdout, "38 460 131\n");
  });

  it("puts --system and --chat into the model's chat template", async () => {
    const model = folder.model("chat", addTokenizer);
    const args = ["--model", model, "--system", "Be kind", "--chat", "hello", "--max-tokens", "1"];
    const { prompt_token_ids: ids } = await generateJson(args);
    assert.equal(textOf(ids), "[system]Be kind[user]hello[assistant]");
  });

  it("ends before a text of --stop", async () => {
    const model = folder.model("stop", addTokenizer);
    const stop = textOf([131, 259]);
    const args = ["--model", model, "--prompt", textOf([433]), "--stop", "never", stop];
    const { outputs } = await generateJson(args);
    assert.equal(outputs[0].text, textOf([38, 460]));
    assert.equal(outputs[0].finish_reason, "stop");
  });
});
