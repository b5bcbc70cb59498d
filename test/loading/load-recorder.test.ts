/** Where the time of loading goes: every nanosecond to one phase, every byte once, and the slowest rank by name. */
import assert from "node:assert/strict";
import { plugin as bitsandbytes } from "@shardloom/bitsandbytes";
import fc from "fast-check";
import { InternalError } from "../../src/core/errors.js";
import { planCapacity } from "../../src/engine/capacity.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import {
  assembleLoadProfile,
  LOAD_PHASES,
  type LoadFacts,
  type LoadPhase,
  type LoadProfile,
  median,
  type RankLoadRecord,
  slowestTensors,
} from "../../src/loading/load-profile.js";
import { unpackLoadRecord } from "../../src/loading/load-record.js";
import { LoadRecorder } from "../../src/loading/load-recorder.js";
import { createRegistries, PLUGIN_API_VERSION, type Plugin, registerPlugin } from "../../src/loading/plugins.js";
import { selectFamily } from "../../src/models/registry.js";
import type { FaultSchedule } from "../../src/rank/faults.js";
import { RankFaults } from "../../src/rank/rank-faults.js";
import { loadRankModel } from "../../src/rank/rank-model.js";
import { fixture } from "../fixture.js";

const MEMORY = { parameterBytes: 0, kvCacheBytes: 0 };

const FACTS: LoadFacts = {
  startedAt: "2026-01-01T00:00:00.000Z",
  subject: { model: "m", loadFormat: "safetensors", quantization: null, dtype: "bf16", checkpointBytes: 1000 },
  machine: { platform: "linux", arch: "x64", cpu: "c", cores: 2, node: "v20" },
  peakMemoryBytes: 1,
};

/** A clock that moves when it is told to, and by one nanosecond whenever it is asked. */
class HandClock {
  nowNs = 0;
  readonly read = (): number => this.nowNs++;
}

/** A loader that was written before there were observers. */
const deaf: Plugin = {
  name: "deaf",
  apiVersion: PLUGIN_API_VERSION,
  register: ({ registerModelLoader }) => {
    registerModelLoader({
      ...safetensorsLoader,
      format: "deaf",
      matches: () => false,
      open: (path) => safetensorsLoader.open(path),
    });
  },
};

const LLAMA = fixture("tiny/llama/bf16");
const DELAY_MS = 500;

/** Ranks that load one after the other, on clocks of their own that stand still unless a fault delays the rank. */
async function loadInTurn(
  worldSize: number,
  { faults = [], inFlight = false, loadFormat }: LoadInTurnOptions = {},
): Promise<{ readonly profile: LoadProfile; readonly bytesRead: readonly number[] }> {
  const registries = createRegistries();
  registerPlugin(registries, bitsandbytes);
  registerPlugin(registries, deaf);
  const loader = registries.modelLoaders.select(LLAMA, loadFormat);
  const description = await loader.describe(LLAMA);
  const config = selectFamily(description.config).parseConfig(description.config);
  const choice = inFlight ? { method: "bitsandbytes", options: { type: "nf4" } } : null;
  const options = {
    path: LLAMA,
    loadFormat: loader.format,
    description,
    worldSize,
    dtype: config.dtype,
    kvCacheDtype: "f32",
    activations: "f32",
    quantization: registries.quantization.select(description.config, choice),
    ...planCapacity(config, { maxTokensPerStep: 8, maxSequences: 1 }, worldSize, "f32"),
  } as const;
  const reports = [];
  for (let rank = 0; rank < worldSize; rank++) {
    const clock = new HandClock();
    const own = new RankFaults(faults, rank, {
      pause: (durationMs) => {
        clock.nowNs += durationMs * 1e6;
      },
      exit: () => assert.fail("no rank exits"),
      exhaustHeap: () => assert.fail("no rank exhausts its heap"),
    });
    const kernels = createReferenceKernels();
    const recorder = new LoadRecorder(rank, clock.read);
    const { report } = await loadRankModel(options, rank, {
      registries,
      kernels,
      recorder,
      intercept: (opened) => own.checkpoint(opened),
    });
    reports.push(report);
  }
  const records = reports.flatMap(({ profile }) => (profile === undefined ? [] : [unpackLoadRecord(profile)]));
  return { profile: assembleLoadProfile(FACTS, records), bytesRead: reports.map(({ bytesRead }) => bytesRead) };
}

interface LoadInTurnOptions {
  readonly faults?: FaultSchedule;
  readonly inFlight?: boolean;
  readonly loadFormat?: string;
}

/** The accounts of a profile, exactly. */
function expectAddsUp({ ranks, totalNs }: LoadProfile): void {
  for (const { startNs, totalNs: rankNs, busyNs, phases, spans } of ranks) {
    assert.equal(startNs + rankNs, totalNs);
    const sum = LOAD_PHASES.reduce((total, phase) => total + phases[phase].selfNs, 0);
    assert.equal(sum, rankNs);
    assert.equal(busyNs, rankNs - phases.wait.selfNs);
    let lastNs = startNs;
    for (const span of spans) {
      assert.ok(span.startNs >= lastNs, `${span.name} begins before what was before it has ended`);
      assert.equal(
        span.parts.reduce((total, { selfNs }) => total + selfNs, 0),
        span.durationNs,
      );
      lastNs = span.startNs + span.durationNs;
    }
    assert.ok(lastNs <= totalNs);
  }
}

describe("a recorder of loading", () => {
  it("gives each span of time to the phase that was entered last, and to no other", () => {
    const clock = new HandClock();
    const recorder = new LoadRecorder(3, () => clock.nowNs);
    const spend = (ns: number): void => {
      clock.nowNs += ns;
    };
    spend(5);
    recorder.enter("shard", "a.weight");
    spend(10);
    recorder.enter("quantize");
    spend(100);
    recorder.readBegins();
    spend(1000);
    recorder.readEnds(64);
    spend(200);
    recorder.leave(16);
    spend(20);
    recorder.leave(8);
    spend(7);
    const { phases, spans, rank, startNs, endNs } = unpackLoadRecord(recorder.finish(MEMORY));
    assert.deepEqual([rank, startNs, endNs], [3, 0, 1342]);
    assert.deepEqual(spans, [
      {
        name: "a.weight",
        phase: "shard",
        startNs: 5,
        durationNs: 1330,
        parts: [
          { phase: "shard", selfNs: 30, bytes: 8, calls: 1 },
          { phase: "quantize", selfNs: 300, bytes: 16, calls: 1 },
          { phase: "read", selfNs: 1000, bytes: 64, calls: 1 },
        ],
      },
    ]);
    assert.deepEqual(phases.other, { selfNs: 12, bytes: 0, calls: 0 });
    assert.deepEqual(phases.read, { selfNs: 1000, bytes: 64, calls: 1 });
  });

  it("counts what is read for the headers as index", () => {
    const recorder = new LoadRecorder(0, new HandClock().read);
    recorder.enter("index", "headers");
    recorder.readBegins();
    recorder.readEnds(100);
    recorder.leave();
    const { phases } = unpackLoadRecord(recorder.finish(MEMORY));
    assert.deepEqual([phases.index.bytes, phases.read.bytes], [100, 0]);
  });

  it("keeps as many spans as there are", () => {
    const clock = new HandClock();
    const recorder = new LoadRecorder(0, clock.read);
    for (let i = 0; i < 5000; i++) {
      recorder.enter("shard", `span ${i}`);
      recorder.readBegins();
      recorder.readEnds(i);
      recorder.leave(1);
    }
    const record = unpackLoadRecord(recorder.finish(MEMORY));
    expectAddsUp(assembleLoadProfile(FACTS, [record]));
    const read = record.spans.map(({ name, parts }) => [name, parts[1]?.bytes]);
    assert.deepEqual(
      read,
      Array.from({ length: 5000 }, (_, i) => [`span ${i}`, i]),
    );
    assert.deepEqual([record.phases.shard.bytes, record.phases.read.calls], [5000, 5000]);
  });

  it("does not let a phase be left that was not entered, nor loading end within one", () => {
    const recorder = new LoadRecorder(0, new HandClock().read);
    assert.throws(() => recorder.leave(), InternalError);
    recorder.enter("read", "a");
    assert.throws(() => recorder.finish(MEMORY), InternalError);
  });

  it("adds up whatever is entered and left, in whatever order", () => {
    const step = fc.oneof(
      fc.record({ enter: fc.constantFrom(...LOAD_PHASES), ns: fc.nat(1e9) }),
      fc.record({ leave: fc.option(fc.nat(1e6), { nil: undefined }), ns: fc.nat(1e9) }),
    );
    fc.assert(
      fc.property(fc.array(fc.array(step, { maxLength: 40 }), { minLength: 1, maxLength: 4 }), (ranks) => {
        const records = ranks.map((steps, rank) => recordOf(rank, steps));
        expectAddsUp(assembleLoadProfile(FACTS, records));
      }),
    );
  });
});

type Step = { readonly ns: number } & ({ readonly enter: LoadPhase } | { readonly leave: number | undefined });

function recordOf(rank: number, steps: readonly Step[]): RankLoadRecord {
  const clock = new HandClock();
  const recorder = new LoadRecorder(rank, clock.read);
  let depth = 0;
  for (const step of steps) {
    clock.nowNs += step.ns;
    if ("enter" in step) {
      recorder.enter(step.enter, `span ${clock.nowNs}`);
      depth++;
    } else if (depth > 0) {
      recorder.leave(step.leave);
      depth--;
    }
  }
  for (; depth > 0; depth--) recorder.leave();
  return unpackLoadRecord(recorder.finish(MEMORY));
}

describe("the profile of a group", () => {
  for (const inFlight of [false, true]) {
    it(`counts every byte that is read${inFlight ? ", also for weights that are quantized in flight" : ""}`, async () => {
      for (const worldSize of [1, 2, 4]) {
        const { profile, bytesRead } = await loadInTurn(worldSize, { inFlight });
        expectAddsUp(profile);
        assert.deepEqual(
          profile.ranks.map(({ phases }) => phases.read.bytes),
          bytesRead,
        );
        for (const { phases, parameterBytes, readsObserved, spans } of profile.ranks) {
          assert.ok(readsObserved);
          // Arenas pad tensors to cache lines.
          assert.ok(phases.shard.bytes > 0.9 * parameterBytes && phases.shard.bytes <= parameterBytes);
          assert.equal(phases.quantize.bytes > 0, inFlight);
          // Kernels take weights of plain numbers as they are.
          assert.ok(phases.repack.calls > 0 && phases.repack.bytes < parameterBytes);
          if (!inFlight) assert.equal(phases.repack.bytes, 0);
          assert.ok(phases.index.bytes > 0);
          assert.ok(spans.some(({ name, phase }) => phase === "repack" && name === "model.layers.1.mlp.down_proj"));
        }
      }
    });
  }

  for (const [what, tensor, inFlight, phase] of [
    ["reading", "model.layers.1.mlp.up_proj.weight", false, "read"],
    ["quantizing", "model.layers.1.mlp.up_proj.weight", true, "quantize"],
  ] as const) {
    it(`names the rank that is late, and that it is so while ${what}`, async () => {
      const { profile } = await loadInTurn(4, {
        inFlight,
        faults: [{ rank: 2, tensor, kind: "delay", delayMs: DELAY_MS }],
      });
      expectAddsUp(profile);
      const { skew, ranks } = profile;
      assert.deepEqual([skew.slowestRank, skew.phase], [2, phase]);
      assert.ok(skew.ratio > 2 && skew.excessNs >= DELAY_MS * 1e6 - 1e6, JSON.stringify(skew));
      // The others wait for it, and are not slow because of that.
      for (const { rank, phases } of ranks) assert.equal(phases.wait.selfNs > 0.9 * DELAY_MS * 1e6, rank !== 2);
      const [slowest] = slowestTensors(profile, 3);
      assert.deepEqual([slowest?.name, slowest?.rank, slowest?.phase], [tensor, 2, phase]);
    });
  }

  for (const inFlight of [false, true]) {
    it(`says when a loader does not tell of its reads, and still counts its bytes (in flight: ${inFlight})`, async () => {
      const { profile, bytesRead } = await loadInTurn(2, { loadFormat: "deaf", inFlight });
      expectAddsUp(profile);
      for (const { rank, readsObserved, phases } of profile.ranks) {
        assert.equal(readsObserved, false);
        assert.equal(phases.read.bytes, bytesRead[rank]);
        assert.equal(phases.index.bytes, 0);
      }
    });
  }

  it("takes the mean of the two in the middle for a median", () => {
    assert.deepEqual([median([3]), median([1, 2]), median([9, 1, 2]), median([4, 1, 3, 2])], [3, 1.5, 2, 2.5]);
  });
});
