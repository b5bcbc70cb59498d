import assert from "node:assert/strict";
import { defaultOneShotBytes } from "../../src/collectives/region.js";
import {
  type CollectiveRecord,
  type CollectiveTrace,
  collectiveTimeline,
  costModel,
  type PassInterceptor,
  simulate,
} from "../../src/testing/index.js";
import { manyHeads, tiny } from "./models.js";

/** A trace of two ranks, made by hand. */
const TRACE: CollectiveTrace = {
  worldSize: 2,
  parameterBytes: [3e9, 2e9],
  steps: [
    {
      step: 0,
      tokens: 4,
      sequences: 2,
      collectives: [
        { sequence: 1, site: "a", kind: "allReduce", bytes: [1000, 1000], computeMs: [2, 3] },
        { sequence: 2, site: "b", kind: "allGather", bytes: [600, 400], computeMs: [5, 1] },
        { sequence: 3, site: "a", kind: "allReduce", bytes: [1000, 1000], computeMs: [0, 0] },
      ],
      tailMs: [1, 0],
    },
  ],
};

function record(kind: CollectiveRecord["kind"], bytes: readonly number[]): CollectiveRecord {
  return { sequence: 1, site: "here", kind, bytes, computeMs: bytes.map(() => 0) };
}

describe("the trace of collectives", () => {
  it("names every collective of a step, who asked, and what each rank contributes", async () => {
    const simulation = await simulate({ model: tiny("mistral"), worldSize: 3 });
    simulation.prefill([1, 2, 3, 4, 5]);
    simulation.decode(6);
    const { steps, worldSize, parameterBytes } = simulation.trace;
    assert.equal(worldSize, 3);
    assert.deepEqual(
      parameterBytes,
      simulation.ownership.ranks.map((rank) => rank.parameterBytes),
    );
    assert.deepEqual(
      steps.map(({ step, tokens, sequences }) => [step, tokens, sequences]),
      [
        [0, 5, 1],
        [1, 1, 1],
      ],
    );
    const layer = (i: number) => [`model.layers.${i}.self_attn.o_proj`, `model.layers.${i}.mlp.down_proj`];
    const [first] = steps;
    assert.deepEqual(
      first?.collectives.map(({ site }) => site),
      ["model.embed_tokens", ...layer(0), ...layer(1), "sampler.logits"],
    );
    assert.deepEqual(
      first?.collectives.map(({ sequence }) => sequence),
      [1, 2, 3, 4, 5, 6],
    );
    assert.deepEqual(first?.collectives[0]?.bytes, [5 * 128 * 4, 5 * 128 * 4, 5 * 128 * 4]);
    // 500 ids in units of 64: three, three and two of them, the last one cut short.
    assert.deepEqual(first?.collectives[5]?.bytes, [192 * 4, 192 * 4, 116 * 4]);
    for (const { computeMs } of first?.collectives ?? [])
      assert.ok(computeMs.length === 3 && computeMs.every((ms) => ms >= 0));
    await simulation.close();
  });

  it("is empty of collectives on one rank, but for the exchange of likeliest tokens", async () => {
    const simulation = await simulate({ config: manyHeads(4, 2), worldSize: 1, shapeOnly: true });
    assert.deepEqual(
      simulation.step().collectives.map(({ site }) => site),
      ["sampler.best"],
    );
  });

  for (const [what, tamper] of [
    ["leaves out a collective", (site: string) => site !== "model.layers.0.mlp.down_proj"],
    ["stops before the last one", (site: string) => site !== "sampler.logits"],
  ] as const) {
    it(`ends in an error that names both places when a rank ${what}`, async () => {
      const skipping: PassInterceptor = function* (pass, rank) {
        for (const request of pass) if (rank !== 1 || tamper(request.site ?? "")) yield request;
      };
      const simulation = await simulate({ model: tiny("llama"), worldSize: 3, intercept: skipping });
      assert.throws(
        () => simulation.prefill([1, 2, 3]),
        (error: unknown) => {
          assert.ok(error instanceof Error && "code" in error && "details" in error);
          assert.equal(error.code, "COLLECTIVE_MISMATCH");
          const places = what.startsWith("leaves")
            ? /request 3: .* rank 0 asks for allReduce of 384 f32 for model\.layers\.0\.mlp\.down_proj and rank 1 for allReduce of 384 f32 for model\.layers\.1\.self_attn\.o_proj$/
            : /request 6: .* rank 0 asks for allGather .* for sampler\.logits and rank 1 for nothing more$/;
          assert.match(error.message, places);
          return true;
        },
      );
      await simulation.close();
    });
  }

  it("ends in an error when a rank swaps two collectives of equal size", async () => {
    const swapping: PassInterceptor = function* (pass, rank) {
      const requests = [...pass];
      const [embedding, attention, mlp, ...rest] = requests;
      if (embedding === undefined || attention === undefined || mlp === undefined) return;
      yield* rank === 0 ? requests : [embedding, mlp, attention, ...rest];
    };
    const simulation = await simulate({ config: manyHeads(8, 2), worldSize: 2, intercept: swapping });
    assert.throws(() => simulation.prefill([1]), {
      code: "COLLECTIVE_MISMATCH",
      message: /request 2: .*o_proj.*down_proj/,
    });
    await simulation.close();
  });
});

describe("the cost model", () => {
  const model = costModel({ latencyUs: 5, gbps: 2 });

  it("prices collectives by what the shared-memory collectives do", () => {
    // 2 * 10^9 bytes a second are 2000 bytes a microsecond.
    assert.equal(model.collectiveUs(record("allReduce", [1000, 1000])), 5 + 1000 / 2000);
    assert.equal(model.collectiveUs(record("allReduce", [1000, 1000, 1000, 1000])), 5 + 3000 / 2000);
    const scattered = 2 * 5 + (2 * 3 * 40_000) / 4 / 2000;
    assert.ok(40_000 > defaultOneShotBytes(4));
    assert.equal(model.collectiveUs(record("allReduce", new Array(4).fill(40_000))), scattered);
    // A slot holds 262144 bytes: a larger payload travels in rounds.
    const rounds = 2 * (2 * 5 + (2 * 3 * 262_144) / 4 / 2000);
    assert.equal(model.collectiveUs(record("allReduce", new Array(4).fill(2 * 262_144))), rounds);
    assert.equal(model.collectiveUs(record("allGather", [600, 400, 0])), 5 + 1000 / 2000);
    assert.equal(model.collectiveUs(record("broadcast", [0, 800])), 5 + 800 / 2000);
    assert.equal(model.collectiveUs(record("barrier", [0, 0])), 5);
    assert.equal(model.collectiveUs(record("allReduce", [1000])), 0, "alone, nobody is met");
  });

  it("adds the slowest rank's computing between collectives, and says how much of it is waiting", () => {
    const { stepMs, computeMs, imbalanceMs, collectiveMs, sites, worldSize } = model.predict(TRACE);
    assert.equal(worldSize, 2);
    assert.equal(computeMs, 3 + 5 + 0 + 1);
    assert.equal(imbalanceMs, 9 - (2.5 + 3 + 0 + 0.5));
    assert.deepEqual(sites, [
      { site: "a", kind: "allReduce", count: 2, bytes: 4000, ms: 2 * 0.0055 },
      { site: "b", kind: "allGather", count: 1, bytes: 1000, ms: 0.0053 },
    ]);
    assert.equal(collectiveMs, 0.011 + 0.0053);
    assert.equal(stepMs, computeMs + collectiveMs);
  });

  it("takes computing as measured, from the weights that are read, or as it is told", () => {
    const speeds = { latencyUs: 0, gbps: 1 };
    assert.equal(costModel({ ...speeds, computeScale: 2 }).predict(TRACE).computeMs, 18);
    assert.equal(costModel({ ...speeds, compute: { weightGbps: 30 } }).predict(TRACE).computeMs, 100);
    assert.equal(costModel({ ...speeds, compute: { stepMs: 8 } }).predict(TRACE).imbalanceMs, 0);
    assert.equal(costModel({ ...speeds, compute: { stepMs: 8 } }).predict(TRACE).computeMs, 8);
  });

  it("refuses numbers that are none, and a step that is not there", () => {
    const wrong = [
      { latencyUs: -1, gbps: 1 },
      { latencyUs: Number.NaN, gbps: 1 },
      { latencyUs: 1, gbps: 0 },
      { latencyUs: 1, gbps: 1, computeScale: -1 },
      { latencyUs: 1, gbps: 1, compute: { weightGbps: 0 } },
      { latencyUs: 1, gbps: 1, compute: { stepMs: Number.POSITIVE_INFINITY } },
    ];
    for (const options of wrong) assert.throws(() => costModel(options), { code: "INVALID_OPTION" });
    assert.throws(() => model.predict(TRACE, 1), { code: "INVALID_OPTION" });
    assert.throws(() => model.predict({ ...TRACE, steps: [] }), { code: "INVALID_OPTION" });
  });

  it("predicts more exchange and less computing on more ranks of a model without bytes", async () => {
    const machine = costModel({ latencyUs: 3, gbps: 8, compute: { weightGbps: 10 } });
    const predictions = [];
    for (const worldSize of [2, 4, 8]) {
      const simulation = await simulate({ config: manyHeads(64, 8), worldSize, shapeOnly: true });
      simulation.step();
      predictions.push(machine.predict(simulation.trace));
    }
    const compute = predictions.map(({ computeMs }) => computeMs);
    const exchange = predictions.map(({ collectiveMs }) => collectiveMs);
    assert.deepEqual(
      compute,
      compute.toSorted((a, b) => b - a),
    );
    assert.deepEqual(
      exchange,
      exchange.toSorted((a, b) => a - b),
    );
  });
});

describe("the timeline of a trace", () => {
  it("draws ranks side by side: compute, wait for the slowest, exchange; and steps around them", () => {
    const { traceEvents, otherData } = collectiveTimeline(TRACE, costModel({ latencyUs: 5, gbps: 2 }));
    assert.deepEqual(otherData, { format: "shardloom-trace", version: 1, worldSize: 2, steps: 1 });
    const slices = traceEvents.flatMap((event) => (event.ph === "X" ? [event] : []));
    const of = (rank: number) =>
      slices.filter(({ tid }) => tid === rank).map(({ name, cat, ts, dur }) => [name, cat, ts, dur]);
    assert.deepEqual(of(0), [
      ["step 0", "step", 0, 9016.3],
      ["compute until a", "compute", 0, 2000],
      ["wait at a", "wait", 2000, 1000],
      ["allReduce a", "collective", 3000, 5.5],
      ["compute until b", "compute", 3005.5, 5000],
      ["allGather b", "collective", 8005.5, 5.3],
      ["allReduce a", "collective", 8010.8, 5.5],
      ["compute until end of step", "compute", 8016.3, 1000],
    ]);
    assert.deepEqual(of(1)[2], ["allReduce a", "collective", 3000, 5.5]);
    assert.deepEqual(slices.find(({ cat, tid }) => cat === "collective" && tid === 1)?.args, {
      step: 0,
      sequence: 1,
      site: "a",
      bytes: 1000,
    });
    assert.deepEqual(slices.find(({ cat }) => cat === "step")?.args, { tokens: 4, sequences: 2 });
  });

  it("nests on every track, step after step", async () => {
    const simulation = await simulate({ config: manyHeads(8, 2), worldSize: 4 });
    simulation.generate([1, 2, 3], 3);
    const { traceEvents } = collectiveTimeline(
      simulation.trace,
      costModel({ latencyUs: 1, gbps: 10, compute: { stepMs: 2 } }),
    );
    for (let rank = 0; rank < 4; rank++) {
      let free = 0;
      let stepEnd = 0;
      for (const event of traceEvents) {
        if (event.ph !== "X" || event.tid !== rank) continue;
        const end = event.ts + event.dur;
        assert.ok(event.ts >= free - 1e-6, `${event.name} begins at ${event.ts}, before ${free}`);
        if (event.cat === "step") stepEnd = end;
        else {
          assert.ok(end <= stepEnd + 1e-6, `${event.name} ends after its step`);
          free = end;
        }
      }
    }
    await simulation.close();
  });
});
