import assert from "node:assert/strict";
import { breakdownLines, decodeBreakdown } from "../../src/cli/step-breakdown.js";
import type { PhaseProfile, RankProfile } from "../../src/index.js";

describe("the breakdown of a step", () => {
  const decode: PhaseProfile = {
    steps: 10,
    stepMs: 100,
    kernels: [
      { name: "argmax", calls: 10, ms: 1, bytes: 1e6, flops: 0 },
      { name: "linear.qkv", calls: 300, ms: 60, bytes: 6e8, flops: 1.2e9 },
    ],
    collectives: { calls: 620, ms: 20, waitMs: 5 },
    profilerMs: 4,
    outsideMs: 15,
    betweenMs: 9,
    gaps: 9,
  };
  const prefill: PhaseProfile = { ...decode, steps: 0, kernels: [] };
  const rank: RankProfile = { rank: 1, phases: { decode, prefill } };
  const unlimited = { dramGbps: null, fmaGflops: null };

  it("adds up: kernels, collectives, outside and between are the total", () => {
    const step = decodeBreakdown(rank, unlimited);
    const { kernels, kernels_us, collectives, outside_us, between_us, total_us } = step;
    assert.equal(
      kernels.reduce((sum, { us }) => sum + us, 0),
      kernels_us,
    );
    assert.equal(kernels_us + collectives.us + outside_us + between_us, total_us);
    assert.equal(total_us, 10_600);
    assert.equal(step.overhead_share, 2500 / 10_600);
    assert.equal(step.profiler_us, 400);
  });

  it("shows the longest first, with speeds, and the share of the nearer limit where limits are known", () => {
    const { kernels } = decodeBreakdown(rank, { dramGbps: 20, fmaGflops: 100 });
    assert.deepEqual(kernels[0], {
      name: "linear.qkv",
      calls: 30,
      us: 6000,
      gbps: 10,
      gflops: 20,
      share_of_limit: 0.5,
    });
    assert.equal(decodeBreakdown(rank, { dramGbps: null, fmaGflops: 25 }).kernels[0]?.share_of_limit, 0.8);
    assert.equal(decodeBreakdown(rank, unlimited).kernels[0]?.share_of_limit, null);
  });

  it("is a table for people, a line a kernel and one for each other part", () => {
    const lines = breakdownLines(decodeBreakdown(rank, unlimited));
    assert.equal(lines[0], "rank 1, average of 10 decode steps");
    assert.match(lines[2] ?? "", /^linear\.qkv +30 +6000\.0 +56\.6% +10\.0 +20\.0 +-$/);
    for (const name of ["collectives: waiting", "collectives: exchange", "outside kernels", "between steps", "total"]) {
      assert.ok(
        lines.some((line) => line.startsWith(name)),
        `expected a line ${name} in\n${lines.join("\n")}`,
      );
    }
    assert.match(lines.at(-1) ?? "", /^overhead 23\.6%; measuring added 400\.0 us/);
  });
});
