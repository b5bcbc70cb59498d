import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fixture } from "../fixture.js";
import { cli, MAIN, startCli } from "./cli-process.js";
import { goldenPrompts, TINY_LLAMA, testFolder } from "./models.js";

/** A format whose first weight says that it is being read, and never comes to an end. */
const ENDLESS = `
import { writeSync } from "node:fs";
const read = () => {
  writeSync(1, "quantizing");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
};
export const plugin = {
  name: "endless",
  apiVersion: 1,
  register(context) {
    const replace = (weight) => [{ name: weight.name, dtype: "u8", shape: [1], read }];
    context.registerCheckpointQuantizer("endless", { plan: () => ({ settings: "{}", replace }) });
  },
};`;

describe("shardloom quantize", () => {
  const folder = testFolder();
  let results = "";
  beforeEach(() => {
    results = join(folder.path, "results");
    mkdirSync(results);
  });
  afterEach(() => rmSync(results, { recursive: true }));

  const out = (): string => join(results, "out");
  const argsOf = (...flags: readonly string[]): string[] => [
    "quantize",
    "--model",
    TINY_LLAMA,
    "--out",
    out(),
    ...flags,
  ];

  it("writes a model that runs with the tokens of transformers, and says in a line what it did", async () => {
    const { code, stdout, stderr } = await cli(argsOf("--format", "nf4", "--double-quant", "--threads", "2"));
    assert.equal(code, 0);
    assert.equal(stdout, "");
    assert.match(
      stderr,
      /^14 weights quantized, 6 tensors as they were: 719 kB to 299 kB in 1 file, [\d.]+ m?s, [\d.]+ [kM]B\/s\n$/,
    );
    const prompt = goldenPrompts(fixture("tiny/llama/nf4-dq"))[1];
    assert.ok(prompt !== undefined);
    const ids = prompt.promptIds.join(",");
    const run = await cli(["generate", "--model", out(), "--tp", "2", "--prompt-ids", ids, "--max-tokens", "32"]);
    assert.equal(run.stdout.trimEnd(), prompt.generatedIds.join(" "));
  });

  it("--json prints one object with the documented fields and no others", async () => {
    const flags = ["--format", "fp4", "--block-size", "128", "--skip", "*.0.*", "--max-shard-size", "100kB", "--json"];
    const { code, stdout, stderr } = await cli(argsOf(...flags));
    assert.equal(stderr, "");
    assert.equal(code, 0);
    const { elapsed_ms: elapsedMs, output_bytes: outputBytes, files, ...report } = JSON.parse(stdout);
    assert.deepEqual(report, {
      model: TINY_LLAMA,
      out: out(),
      format: "fp4",
      quantized_tensors: 7,
      copied_tensors: 13,
      source_bytes: 719_104,
    });
    assert.ok(elapsedMs > 0 && outputBytes > 0);
    assert.deepEqual(
      files,
      readdirSync(out()).filter((name) => name.endsWith(".safetensors")),
    );
    assert.ok(files.length > 1);
    const { quantization_config: settings } = JSON.parse(readFileSync(join(out(), "config.json"), "utf8"));
    assert.equal(settings.llm_int8_skip_modules.length, 7);
    assert.equal(settings.llm_int8_skip_modules[0], "model.layers.0.self_attn.q_proj");
  });

  it("replaces a model only with --overwrite", async () => {
    assert.equal((await cli(argsOf("--format", "nf4"))).code, 0);
    const refused = await cli(argsOf("--format", "int8"));
    assert.match(refused.stderr, /^shardloom: error\[OUTPUT_EXISTS\]: .*--overwrite.*\n$/);
    assert.equal(refused.code, 2);
    assert.equal((await cli(argsOf("--format", "int8", "--overwrite"))).code, 0);
    assert.deepEqual(readdirSync(results), ["out"]);
    assert.ok(
      readFileSync(join(out(), "model.safetensors")).equals(readFileSync(fixture("tiny/llama/int8/model.safetensors"))),
    );
  });

  for (const [flags, exitCode, code, ...words] of [
    [["--format", "int4"], 2, "UNKNOWN_QUANTIZATION_FORMAT", "nf4, fp4, int8", "int4", "--plugin"],
    [["--format", "nf4", "--no-default-plugins"], 2, "UNKNOWN_QUANTIZATION_FORMAT", "none is registered"],
    [["--format", "nf4", "--block-size", "48"], 2, "INVALID_OPTION", "blockSize", "48"],
    [["--format", "nf4", "--block-size", "many"], 2, "INVALID_OPTION", "--block-size", "many"],
    [["--format", "int8", "--double-quant"], 2, "INVALID_OPTION", "doubleQuant"],
    [["--format", "nf4", "--skip", "head"], 2, "INVALID_OPTION", "head"],
    [["--format", "nf4", "--max-shard-size", "5XB"], 2, "INVALID_OPTION", "--max-shard-size", "5XB"],
    [["--format", "nf4", "--max-shard-size", "0"], 2, "INVALID_OPTION", "--max-shard-size"],
    [["--format", "nf4", "--threads", "0"], 2, "INVALID_OPTION", "--threads"],
    [["--format", "nf4", "--dtype", "f64"], 2, "INVALID_OPTION", "--dtype", "f64"],
    [["--format", "nf4", "--quantization-option", "bits=4"], 2, "UNKNOWN_OPTION", "bits"],
    [["--format", "nf4", "--model", fixture("tiny/llama/int8")], 3, "ALREADY_QUANTIZED", "bitsandbytes"],
    [["--format", "nf4", "--model", "/no/such/model"], 3, "MODEL_NOT_FOUND", "/no/such/model"],
    [[], 2, "INVALID_USAGE", "--format"],
  ] as const) {
    it(`says in one line what is wrong, and leaves nothing: ${flags.join(" ")}`, async () => {
      const result = await cli(argsOf(...flags));
      assert.equal(result.stdout, "");
      assert.match(result.stderr, new RegExp(`^shardloom: error\\[${code}\\]: .*\\n$`));
      for (const word of words) assert.ok(result.stderr.includes(word), result.stderr);
      assert.equal(result.code, exitCode);
      assert.deepEqual(readdirSync(results), []);
    });
  }

  for (const [what, flags] of [
    ["a weight file", []],
    ["one of several", ["--max-shard-size", "200kB"]],
  ] as const) {
    it(`says that the disk is full, and leaves nothing, when ${what} cannot be written to its end`, function () {
      if (process.platform === "win32") return this.skip();
      // 100 blocks of 512 or 1024 bytes, as the shell has it: less than the embedding.
      const script = 'ulimit -f 100 && exec "$@"';
      const command = ["-c", script, "sh", process.execPath, MAIN, ...argsOf("--format", "nf4", ...flags)];
      const { status, stdout, stderr } = spawnSync("sh", command, { encoding: "utf8" });
      assert.equal(stdout, "");
      assert.match(stderr, /^shardloom: error\[WRITE_FAILED\]: cannot write .*EFBIG.*\n$/);
      assert.equal(status, 5);
      assert.deepEqual(readdirSync(results), []);
    });
  }

  it("takes back what it wrote when it is interrupted", async () => {
    const plugin = folder.write("endless.mjs", ENDLESS);
    const { child, printed, finished } = startCli(argsOf("--format", "endless", "--plugin", plugin));
    await printed(/quantizing/);
    assert.equal(readdirSync(results).length, 1);
    child.kill("SIGINT");
    const { code, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 130);
    assert.deepEqual(readdirSync(results), []);
  });

  it("leaves no model that loads when it is killed", async () => {
    const plugin = folder.write("endless.mjs", ENDLESS);
    const { child, printed, finished } = startCli(argsOf("--format", "endless", "--plugin", plugin));
    await printed(/quantizing/);
    child.kill("SIGKILL");
    await finished;
    assert.equal(existsSync(out()), false);
    const [rest = "", ...others] = readdirSync(results);
    assert.match(rest, /^\.out\.incomplete-/);
    assert.deepEqual(others, []);
    const run = await cli(["generate", "--model", join(results, rest), "--prompt-ids", "1"]);
    assert.match(run.stderr, /^shardloom: error\[/);
    assert.equal(run.code, 3);
    // It is in nobody's way.
    assert.equal((await cli(argsOf("--format", "nf4"))).code, 0);
  });
});
