import assert from "node:assert/strict";
import { nativeAddon } from "../../src/core/native-addon.js";
import { cli } from "./cli-process.js";
import { TINY_LLAMA } from "./models.js";

describe("shardloom bench decode", () => {
  const args = (...more: readonly string[]) => ["bench", "decode", "--model", TINY_LLAMA, "--tokens", "6", ...more];

  it("prints tokens a second for people", async () => {
    const { code, stdout, stderr } = await cli(args("--runs", "2"));
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.match(stdout, /^tp 1: [\d.]+ tokens\/s \(best run [\d.]+\), .* a token, TTFT .*, 2 runs of 6 tokens\n$/);
  });

  it("--json prints runs, and with --breakdown the parts of a step of every rank, which add up", async () => {
    const { code, stdout } = await cli(
      args("--tp", "2", "--runs", "3", "--breakdown", "--json", "--dram-gbps", "20", "--fma-gflops", "90"),
    );
    assert.equal(code, 0);
    const report = JSON.parse(stdout);
    assert.deepEqual(Object.keys(report), [
      "model",
      "tp",
      "tokens",
      "load_ms",
      "ttft_ms",
      "tpot_ms",
      "tokens_per_second",
      "breakdown",
    ]);
    assert.deepEqual([report.tp, report.tokens, report.tpot_ms.length], [2, 6, 3]);
    const { dram_gbps, fma_gflops, ranks } = report.breakdown;
    assert.deepEqual([dram_gbps, fma_gflops], [20, 90]);
    assert.deepEqual(
      ranks.map(({ rank, steps }: { rank: number; steps: number }) => [rank, steps]),
      // Of 6 tokens the first one comes from the prompt's step.
      [
        [0, 15],
        [1, 15],
      ],
    );
    for (const { kernels, kernels_us, collectives, outside_us, between_us, total_us } of ranks) {
      const names: readonly string[] = kernels.map(({ name }: { name: string }) => name);
      for (const name of ["linear.qkv", "linear.o", "linear.gate_up", "linear.down", "linear.head", "attention"]) {
        assert.ok(names.includes(name), `expected ${name} among ${names.join(", ")}`);
      }
      const parts = kernels_us + collectives.us + outside_us + between_us;
      assert.ok(Math.abs(parts - total_us) < 1e-6 * total_us, `expected ${total_us} but the parts are ${parts}`);
      assert.ok(collectives.wait_us <= collectives.us);
    }
    const calls = ranks.map(({ collectives }: { collectives: { calls: number } }) => collectives.calls);
    assert.equal(calls[0], calls[1]);
  });

  it("measures what a rank can reach where nobody says it", async () => {
    const { stdout } = await cli(args("--runs", "1", "--breakdown", "--json"));
    const { breakdown } = JSON.parse(stdout);
    if (nativeAddon().loaded) assert.ok(breakdown.dram_gbps > 0 && breakdown.fma_gflops > 0);
    else assert.deepEqual([breakdown.dram_gbps, breakdown.fma_gflops], [null, null]);
  });

  it("without --breakdown has none in its JSON", async () => {
    const { stdout } = await cli(args("--runs", "1", "--json"));
    assert.equal("breakdown" in JSON.parse(stdout), false);
  });

  it("refuses limits that are no speeds", async () => {
    const { code, stderr } = await cli(args("--dram-gbps", "0"));
    assert.equal(code, 2);
    assert.match(stderr, /error\[INVALID_OPTION\]: expected --dram-gbps to be a number above 0/);
  });

  it("refuses flags that another one, or its absence, would make meaningless", async () => {
    for (const flags of [
      ["--prompt-ids", "1", "--prompt", "a"],
      ["--dram-gbps", "20"],
      ["--fma-gflops", "90"],
    ]) {
      const { code, stderr } = await cli(args(...flags));
      assert.equal(code, 2);
      assert.match(
        stderr,
        /error\[INVALID_OPTION\]: expected (--prompt or --prompt-ids|--breakdown beside --\S+) but received/,
      );
    }
  });
});
