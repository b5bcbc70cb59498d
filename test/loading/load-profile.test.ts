/** The profile of ranks in threads: one clock for all of them, what the system counted, and nothing of it unless asked. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { launch } from "../../src/index.js";
import { LOAD_PHASES, type LoadProfile } from "../../src/loading/load-profile.js";
import { launchWithFaults } from "../../src/testing/index.js";
import { fixture } from "../fixture.js";

const LLAMA = fixture("tiny/llama/bf16");

function expectAddsUp({ ranks, totalNs }: LoadProfile): void {
  for (const { startNs, totalNs: rankNs, phases } of ranks) {
    assert.equal(startNs + rankNs, totalNs);
    assert.equal(
      LOAD_PHASES.reduce((sum, phase) => sum + phases[phase].selfNs, 0),
      rankNs,
    );
  }
}

describe("launch({ loadProfile: true })", () => {
  it("profiles every rank on one clock", async () => {
    const engine = await launch({ model: LLAMA, tensorParallelSize: 3, loadProfile: true });
    const { loadProfile: profile, reports } = engine;
    await engine.close();
    assert.ok(profile !== null);
    expectAddsUp(profile);
    assert.deepEqual(
      profile.ranks.map(({ rank, phases }) => [rank, phases.read.bytes]),
      reports.map(({ rank, bytesRead }) => [rank, bytesRead]),
    );
    // Threads start after launch was called, and one rank is the last.
    for (const { startNs } of profile.ranks) assert.ok(startNs > 0);
    assert.ok(profile.ranks.some(({ phases }) => phases.wait.selfNs === 0));
    const { readAmplification, bytesRead, subject, peakMemoryBytes } = profile;
    assert.equal(readAmplification, bytesRead / subject.checkpointBytes);
    assert.ok(peakMemoryBytes > 1e7);
    for (const { system } of profile.ranks) {
      if (process.platform !== "linux") assert.equal(system, undefined);
      if (system?.readBytes !== undefined) assert.ok(system.readBytes >= bytesRead / 3 / 2);
    }
  });

  it("tells quantizing in flight from reading", async () => {
    const engine = await launch({
      model: LLAMA,
      tensorParallelSize: 2,
      loadProfile: true,
      plugins: ["@shardloom/bitsandbytes"],
      quantization: "bitsandbytes",
      quantizationOptions: { type: "nf4" },
    });
    const { loadProfile: profile } = engine;
    await engine.close();
    assert.ok(profile !== null);
    expectAddsUp(profile);
    assert.equal(profile.subject.quantization, "bitsandbytes");
    for (const { phases } of profile.ranks) assert.ok(phases.quantize.selfNs > 0 && phases.read.selfNs > 0);
  });

  it("tells unpacking blocks of a .gguf file from reading them", async () => {
    const engine = await launch({
      model: fileURLToPath(new URL("../../../plugins/gguf/test/fixtures/model.gguf", import.meta.url)),
      tensorParallelSize: 2,
      loadProfile: true,
      plugins: ["@shardloom/gguf"],
    });
    const { loadProfile: profile, reports } = engine;
    await engine.close();
    assert.ok(profile !== null);
    expectAddsUp(profile);
    assert.deepEqual([profile.subject.loadFormat, profile.subject.quantization], ["gguf", "gguf"]);
    for (const [rank, { phases, readsObserved, spans }] of profile.ranks.entries()) {
      assert.ok(readsObserved);
      assert.equal(phases.read.bytes, reports[rank]?.bytesRead);
      assert.ok(phases.index.bytes > 0);
      assert.deepEqual([phases.quantize.calls, phases.quantize.selfNs], [0, 0]);
      assert.ok(spans.some(({ name }) => name.endsWith(".weight.codes")));
    }
  });

  it("is off by default: ranks record nothing", async () => {
    const engine = await launch({ model: LLAMA });
    await engine.close();
    assert.equal(engine.loadProfile, null);
    assert.ok(engine.reports.every((report) => !("profile" in report)));
  });

  it("names in a thread the tensor over which a rank was late", async () => {
    const tensor = "model.layers.0.mlp.gate_proj.weight";
    const faults = [{ rank: 1, tensor, kind: "delay", delayMs: 200 }] as const;
    const engine = await launchWithFaults({ model: LLAMA, worldSize: 2, faults, loadProfile: true });
    const { loadProfile: profile } = engine;
    await engine.close();
    assert.ok(profile !== null);
    expectAddsUp(profile);
    const late = profile.ranks[1]?.spans.find(({ name }) => name === tensor);
    const [read] = late?.parts.filter(({ phase }) => phase === "read") ?? [];
    assert.ok((read?.selfNs ?? 0) >= 199e6, JSON.stringify(late));
  });
});
