import assert from "node:assert/strict";
import { fixture } from "../fixture.js";
import { cli } from "./cli-process.js";
import { goldenPrompts, TINY_LLAMA } from "./models.js";

describe("quantized models on the command line", () => {
  async function tokens(model: string, ids: readonly number[], flags: readonly string[]): Promise<number[]> {
    const args = [
      "generate",
      "--json",
      "--model",
      model,
      "--prompt-ids",
      ids.join(","),
      "--max-tokens",
      "32",
      ...flags,
    ];
    const { code, stdout, stderr } = await cli(args);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    return JSON.parse(stdout).outputs[0].token_ids;
  }

  for (const [name, tp] of [
    ["llama/nf4", 1],
    ["llama/nf4-dq", 2],
    ["llama/int8", 2],
    ["llama-uneven/nf4", 3],
  ] as const) {
    it(`are loaded by the plugin that comes with it, with transformers' tokens: ${name} at --tp ${tp}`, async () => {
      const model = fixture(`tiny/${name}`);
      for (const { promptIds, generatedIds } of goldenPrompts(model).slice(0, 2)) {
        assert.deepEqual(await tokens(model, promptIds, ["--tp", `${tp}`]), generatedIds);
      }
    });
  }

  it("are made while a model loads, and are what would have been stored", async () => {
    const nf4 = ["--quantization", "bitsandbytes", "--tp", "2"];
    const options = (...pairs: string[]) => pairs.flatMap((pair) => ["--quantization-option", pair]);
    for (const [golden, flags] of [
      ["llama/nf4", nf4],
      ["llama/nf4-dq", [...nf4, ...options("doubleQuant=true", "blockSize=64")]],
      ["llama/fp4", [...nf4, ...options("type=fp4")]],
      ["llama/int8", [...nf4, ...options('type="int8"')]],
    ] as const) {
      const prompt = goldenPrompts(fixture(`tiny/${golden}`))[1];
      assert.ok(prompt !== undefined);
      assert.deepEqual(await tokens(TINY_LLAMA, prompt.promptIds, flags), prompt.generatedIds, golden);
    }
  });

  for (const [flags, exitCode, code, ...words] of [
    [["--quantization", "gptq"], 3, "UNKNOWN_QUANTIZATION", "gptq", "@shardloom/gptq", "bitsandbytes"],
    [["--quantization", "bitsandbytes", "--quantization-option", "bits=4"], 2, "UNKNOWN_OPTION", "bits"],
    [
      ["--quantization", "bitsandbytes", "--quantization-option", "blockSize=big"],
      2,
      "INVALID_OPTION",
      "blockSize",
      '"big"',
    ],
    [["--quantization-option", "blockSize=64"], 2, "INVALID_OPTION", "--quantization", "blockSize"],
    [["--quantization-option", "blockSize"], 2, "INVALID_OPTION", "--quantization-option", "blockSize"],
    [["--quantization-option", "=64"], 2, "INVALID_OPTION", "--quantization-option", "=64"],
  ] as const) {
    it(`are not made from wrong words: ${flags.join(" ")}`, async () => {
      const result = await cli(["generate", "--model", TINY_LLAMA, "--prompt-ids", "1", ...flags]);
      assert.equal(result.stdout, "");
      assert.match(result.stderr, new RegExp(`^shardloom: error\\[${code}\\]: .*\\n$`));
      for (const word of words) assert.ok(result.stderr.includes(word), result.stderr);
      assert.equal(result.code, exitCode);
    });
  }

  it("without the plugin, the error names the package to install", async () => {
    const args = ["generate", "--model", fixture("tiny/llama/nf4"), "--prompt-ids", "1", "--no-default-plugins"];
    const { code, stderr } = await cli(args);
    assert.match(stderr, /^shardloom: error\[UNKNOWN_QUANTIZATION\]: .*@shardloom\/bitsandbytes.*\n$/);
    assert.equal(code, 3);
  });
});
