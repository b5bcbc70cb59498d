import assert from "node:assert/strict";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fixture } from "../fixture.js";
import { cli } from "./cli-process.js";
import { goldenPrompts, testFolder } from "./models.js";

const NF4 = fixture("tiny/llama/nf4-dq");

describe("shardloom shard", () => {
  const folder = testFolder();
  let out = "";
  beforeEach(() => {
    mkdirSync(join(folder.path, "states"));
    out = join(folder.path, "states", "out");
  });
  afterEach(() => rmSync(join(folder.path, "states"), { recursive: true }));

  it("saves a state that runs without the plugin of its format, and says in a line what it did", async () => {
    const { code, stdout, stderr } = await cli(["shard", "--model", NF4, "--tp", "2", "--out", out]);
    assert.deepEqual([code, stdout], [0, ""]);
    assert.match(stderr, /^[\d.]+ kB of 2 ranks in 2 files, [\d.]+ m?s\n$/);
    const [prompt] = goldenPrompts(NF4);
    assert.ok(prompt !== undefined);
    const ids = prompt.promptIds.join(",");
    const flags = ["--no-default-plugins", "--tp", "3", "--prompt-ids", ids, "--max-tokens", "32"];
    const run = await cli(["generate", "--model", out, ...flags]);
    assert.equal(run.stdout.trimEnd(), prompt.generatedIds.join(" "));
    const unverified = await cli(["generate", "--model", out, ...flags, "--no-verify-checksums"]);
    assert.equal(unverified.stdout, run.stdout);
  });

  it("prints one JSON object, and replaces a state when it is told to", async () => {
    const command = ["shard", "--model", NF4, "--tp", "2", "--out", out, "--json"];
    const { stdout } = await cli(command);
    const report = JSON.parse(stdout);
    assert.deepEqual([report.out, report.tp, report.files.length], [out, 2, 2]);
    const refused = await cli(command);
    assert.equal(refused.code, 2);
    assert.match(refused.stderr, /^shardloom: error\[OUTPUT_EXISTS\]/);
    assert.equal((await cli([...command, "--overwrite"])).code, 0);
  });

  it("leaves nothing behind when the model cannot be split that far", async () => {
    const { code, stderr } = await cli(["shard", "--model", NF4, "--tp", "40", "--out", out]);
    assert.equal(code, 3);
    assert.match(stderr, /^shardloom: error\[TOO_MANY_RANKS\]/);
    assert.equal(existsSync(out), false);
  });
});
