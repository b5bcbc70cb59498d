import assert from "node:assert/strict";
import { fixture } from "../fixture.js";
import { cli } from "./cli-process.js";
import { TINY_LLAMA } from "./models.js";

const BIG = ["--model", fixture("configs/llama-3.1-405b.json"), "--tp", "4"];

describe("shardloom plan", () => {
  it("shows each rank's part of a model that would run, and exits with 0", async () => {
    const { code, stdout, stderr } = await cli(["plan", "--model", TINY_LLAMA, "--tp", "3", "--max-model-len", "64"]);
    assert.equal(stderr, "");
    assert.match(stdout, /^LlamaForCausalLM: \d+ layers, .*\n3 ranks, weights bf16, KV cache f32, context 64,/);
    assert.match(stdout, /^rank {2}query heads {2}KV heads +weights +replicated +KV cache +activations +total$/m);
    for (const rank of [0, 1, 2]) assert.match(stdout, new RegExp(`^ +${rank}  \\d`, "m"));
    assert.match(stdout, /^exchanged per token: \d+ collectives, .* from each rank$/m);
    assert.match(stdout, /^This would run: it takes /m);
    assert.equal(code, 0);
  });

  it("says why one would not, and exits with 3", async () => {
    const { code, stdout } = await cli(["plan", ...BIG, "--memory-bytes", "1000000000"]);
    assert.match(stdout, /^This would not run:\n- OUT_OF_MEMORY: all ranks together need \d+ bytes/m);
    assert.equal(code, 3);
  });

  it("names flags, not options of the API, and plans for one sequence where nothing else is said", async () => {
    const { stdout } = await cli(["plan", "--model", TINY_LLAMA, "--max-model-len", "100000", "--memory-bytes", "9"]);
    assert.match(stdout, /^- CONTEXT_TOO_LONG: expected --max-model-len to be at most/m);
    const made = JSON.parse((await cli(["plan", "--model", TINY_LLAMA, "--json"])).stdout);
    assert.equal(made.maxSequences, 1);
  });

  it("prints the whole plan as one JSON object", async () => {
    const flags = ["--memory-bytes", "2000000000000", "--batch", "2", "--max-model-len", "1024", "--json"];
    const { code, stdout } = await cli(["plan", ...BIG, ...flags]);
    const made = JSON.parse(stdout);
    assert.deepEqual([made.version, made.worldSize, made.source, made.maxSequences], [1, 4, "config", 2]);
    assert.equal(made.ranks.length, 4);
    assert.equal(made.ranks[0].layers.length, 126 * 4 + 2);
    assert.deepEqual(made.ranks[0].layers[1], {
      prefix: "model.layers.0.self_attn.qkv_proj",
      rows: (32 + 2 + 2) * 128,
      columns: 16384,
    });
    assert.equal(code, 0);
  });

  it("leaves the number of ranks to the machine where it is told to, and says why", async () => {
    const { code, stdout } = await cli(["plan", "--model", TINY_LLAMA, "--tp", "auto", "--json"]);
    const made = JSON.parse(stdout);
    assert.equal(code, 0);
    assert.ok(made.worldSize >= 1 && made.ranks.length === made.worldSize);
    assert.match(made.notes.join(), /^ranks chosen by the machine: /);
    const run = ["generate", "--model", TINY_LLAMA, "--prompt-ids", "1,2,3", "--max-tokens", "2", "--json"];
    const answer = JSON.parse((await cli([...run, "--tp", "auto"])).stdout);
    assert.equal(answer.ranks.length, made.worldSize);
    assert.equal(answer.tp, made.worldSize);
  });

  it("says which threads the ranks would get, and takes no flag that a plan cannot depend on", async () => {
    const plan = ["plan", "--model", TINY_LLAMA, "--tp", "2"];
    const { stdout } = await cli([...plan, "--threads-per-rank", "3", "--no-pinning"]);
    assert.match(stdout, /^threads here: 3 a rank, on any CPU \(pinning is off\)$/m);
    const made = JSON.parse((await cli([...plan, "--threads-per-rank", "3", "--no-pinning", "--json"])).stdout);
    assert.deepEqual([made.placement.threadsPerRank, made.placement.pinning], [3, "none"]);
    for (const flags of [["--activations", "int8"], ["--no-verify-checksums"]]) {
      const { code, stderr } = await cli([...plan, ...flags]);
      assert.equal(code, 2);
      assert.match(stderr, new RegExp(`error\\[INVALID_USAGE\\]: unknown option '${flags[0]}'`));
    }
  });

  it("refuses wrong flags with exit code 2", async () => {
    for (const flags of [
      ["--batch", "0"],
      ["--memory-bytes", "much"],
      ["--tp", "65"],
    ]) {
      const { code, stdout, stderr } = await cli(["plan", "--model", TINY_LLAMA, ...flags]);
      assert.deepEqual([code, stdout], [2, ""]);
      assert.match(stderr, /^shardloom: error\[INVALID_/);
    }
  });
});
