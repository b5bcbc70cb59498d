import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { nativeAddon } from "../../src/core/native-addon.js";
import { launch, OptionError, ShardloomError } from "../../src/index.js";
import {
  describeFault,
  expectRanksAgree,
  expectSameLogits,
  type Fault,
  type FaultSchedule,
  launchWithFaults,
  type SimulateOptions,
  type Simulation,
  SimulationAssertionError,
  simulate,
} from "../../src/testing/index.js";
import { heldResources, type ThreadCount, watchThreads } from "../coordinator/threads.js";
import { fixture } from "../fixture.js";
import { collect, readGolden } from "../models/golden.js";
import { askAll } from "./fault-cases.js";
import { publishedConfig, tiny } from "./models.js";

const [PROMPT] = readGolden(fixture("tiny/llama/bf16.golden.json")).prompts.map(({ promptIds, generatedIds }) => ({
  promptTokenIds: promptIds,
  sampling: { maxTokens: 4 },
  answer: generatedIds.slice(0, 4),
}));
/** One sum for the embedding, two a layer, and the exchange of maxima: so many collectives a step, in two layers. */
const A_STEP = 6;
const model = tiny("llama");

interface Case {
  readonly faults: FaultSchedule;
  readonly worldSize?: number;
  readonly verifyCollectives?: boolean;
  readonly code: string;
  readonly details: Readonly<Record<string, unknown>>;
  /** Tokens that come before the error. */
  readonly tokens?: number;
}

const down = "model.layers.1.mlp.down_proj.weight";

/** What every kind of fault ends in, on either driver: error and fields alike. */
const CASES: Readonly<Record<string, Case>> = {
  "a rank that throws in a step": {
    faults: [{ rank: 1, collective: A_STEP + 2, kind: "throw" }],
    code: "INJECTED_FAULT",
    details: { rank: 1, collective: 8, site: "model.layers.0.self_attn.o_proj" },
    tokens: 1,
  },
  "a rank that hangs in a step": {
    faults: [{ rank: 1, collective: 2 * A_STEP + 5, kind: "hang" }],
    code: "COLLECTIVE_TIMEOUT",
    details: { missingRanks: "1", timeoutMs: 700, sequence: 17, site: "model.layers.1.mlp.down_proj" },
    tokens: 2,
  },
  "a rank that comes later than others wait": {
    faults: [{ rank: 2, collective: 3, kind: "delay", delayMs: 60_000 }],
    code: "COLLECTIVE_TIMEOUT",
    details: { missingRanks: "2", timeoutMs: 700, sequence: 3 },
  },
  "ranks that all hang, so that none waits for another": {
    faults: [0, 1, 2].map((rank) => ({ rank, collective: 2, kind: "hang" })),
    code: "RANK_TIMEOUT",
    details: { ranks: "0,1,2", expected: 3000 },
  },
  "a lone rank that hangs": {
    faults: [{ rank: 0, collective: 2, kind: "hang" }],
    worldSize: 1,
    code: "RANK_TIMEOUT",
    details: { rank: 0, ranks: "0", expected: 3000 },
    // A lone rank needs the others for nothing but the exchange of maxima.
    tokens: 1,
  },
  "a rank whose thread ends in a step": {
    faults: [{ rank: 2, collective: A_STEP, kind: "exit", exitCode: 7 }],
    code: "RANK_EXITED",
    details: { rank: 2, exitCode: 7 },
  },
  "a rank whose heap is full": {
    faults: [{ rank: 0, collective: A_STEP + 1, kind: "outOfMemory" }],
    code: "RANK_EXITED",
    details: { rank: 0, exitCode: 1 },
    tokens: 1,
  },
  "a copy of a result that is corrupted, where ranks verify": {
    faults: [{ rank: 2, collective: 4, kind: "corrupt", payload: "received", element: 5, value: "flipped" }],
    verifyCollectives: true,
    code: "COLLECTIVE_CORRUPTED",
    details: { rank: 2, ranks: "2", sequence: 4, site: "model.layers.1.self_attn.o_proj" },
  },
  "a copy that is corrupted on one of two ranks, which are both under suspicion": {
    faults: [{ rank: 0, collective: A_STEP, kind: "corrupt", payload: "received", value: "flipped" }],
    worldSize: 2,
    verifyCollectives: true,
    code: "COLLECTIVE_CORRUPTED",
    details: { ranks: "0,1", sequence: 6, site: "sampler.best" },
  },
  "a NaN that a rank contributes": {
    faults: [{ rank: 1, collective: A_STEP + 1, kind: "corrupt", payload: "sent" }],
    code: "NON_FINITE_LOGITS",
    details: { rank: 0 },
    tokens: 1,
  },
  "a NaN that one rank alone computes its logits from, and rank 0 does not": {
    faults: [{ rank: 1, collective: A_STEP + 5, kind: "corrupt", payload: "received" }],
    code: "NON_FINITE_LOGITS",
    details: { rank: 0 },
    tokens: 1,
  },
  "a NaN in a weight of one rank": {
    faults: [{ rank: 1, tensor: "model.norm.weight", kind: "corrupt" }],
    code: "NON_FINITE_LOGITS",
    details: { rank: 0 },
  },
  "a rank that throws while it loads": {
    faults: [{ rank: 2, tensor: down, kind: "throw" }],
    code: "INJECTED_FAULT",
    details: { rank: 2, tensor: down, file: `${model}/model.safetensors` },
  },
  "a rank that hangs while it loads": {
    faults: [{ rank: 1, tensor: 2, kind: "hang" }],
    code: "RANK_TIMEOUT",
    details: { rank: 1, ranks: "1", expected: 2500 },
  },
  "a rank whose thread ends while it loads": {
    faults: [{ rank: 0, tensor: 1, kind: "exit", exitCode: 0 }],
    code: "RANK_EXITED",
    details: { rank: 0, exitCode: 0 },
  },
  "a file that ends early": {
    faults: [{ rank: 1, tensor: down, kind: "shortRead" }],
    code: "SHORT_READ",
    details: { rank: 1, tensor: down, file: `${model}/model.safetensors` },
  },
  "memory that is refused for a tensor by name": {
    faults: [{ rank: 1, tensor: "model.norm.weight", kind: "outOfMemory" }],
    code: "OUT_OF_MEMORY",
    details: { rank: 1, tensor: "model.norm.weight" },
  },
  "memory that is refused for the first tensor that a rank allocates": {
    faults: [{ rank: 0, tensor: 1, kind: "outOfMemory" }],
    code: "OUT_OF_MEMORY",
    details: { rank: 0, tensor: "rope" },
  },
  "a rank that throws while another one hangs": {
    faults: [
      { rank: 0, tensor: 1, kind: "hang" },
      { rank: 2, tensor: 3, kind: "throw" },
    ],
    code: "INJECTED_FAULT",
    details: { rank: 2 },
  },
};

/** What became of one request. */
interface End {
  readonly tokenIds: readonly number[];
  readonly error?: ShardloomError;
}

function expectEnd({ code, details, tokens = 0 }: Case, { tokenIds, error }: End): void {
  assert.ok(error !== undefined, "no error");
  assert.equal(error.code, code, error.message);
  for (const [field, value] of Object.entries(details)) assert.equal(error.details[field], value, field);
  assert.deepEqual(tokenIds, PROMPT?.answer.slice(0, tokens));
}

/** Short enough for threads to be waited for where a rank stays away; long enough never to be met elsewhere. */
function timeoutsFor({ code }: Case): { readonly [name: string]: number } {
  if (code === "COLLECTIVE_TIMEOUT") return { collectiveTimeoutMs: 700 };
  return code === "RANK_TIMEOUT" ? { startTimeoutMs: 2500, stepTimeoutMs: 3000 } : {};
}

describe("faults", () => {
  let open: Simulation[] = [];

  async function load(options: SimulateOptions & { readonly shapeOnly?: false }): Promise<Simulation> {
    const simulation = await simulate(options);
    open.push(simulation);
    return simulation;
  }

  afterEach(async () => {
    await Promise.all(open.map((simulation) => simulation.close()));
    open = [];
  });

  async function askOnce(start: () => Promise<Pick<Simulation, "engine" | "close">>): Promise<End> {
    let group: Pick<Simulation, "engine" | "close">;
    try {
      group = await start();
    } catch (error) {
      assert.ok(error instanceof ShardloomError, String(error));
      return { tokenIds: [], error };
    }
    const [end] = await askAll(group.engine, PROMPT === undefined ? [] : [PROMPT]);
    await group.close();
    return end ?? assert.fail();
  }

  describe("in turns", () => {
    for (const [what, each] of Object.entries(CASES)) {
      it(`${what}: ${each.code}, whatever the order`, async () => {
        const { faults, worldSize = 3, verifyCollectives } = each;
        const timeouts = timeoutsFor(each);
        for (const order of ["byRank", "reversed", "shuffled"] as const) {
          const options = { model, worldSize, faults, verifyCollectives, timeouts, order };
          expectEnd(each, await askOnce(() => simulate(options)));
        }
      });
    }

    it("measures delays by the deadlines: those of one step add up, and a new step begins anew", async () => {
      const late = (collective: number, delayMs: number): Fault => ({ rank: 1, collective, kind: "delay", delayMs });
      const timeouts = { collectiveTimeoutMs: 500, stepTimeoutMs: 900 };
      const endOf = (faults: FaultSchedule): Promise<End> =>
        askOnce(() => simulate({ model, worldSize: 2, faults, timeouts }));
      assert.deepEqual(await endOf([late(1, 500), late(2, 400), late(A_STEP + 1, 500)]), { tokenIds: PROMPT?.answer });
      assert.equal((await endOf([late(2, 501)])).error?.code, "COLLECTIVE_TIMEOUT");
      assert.equal((await endOf([late(1, 500), late(2, 401)])).error?.code, "RANK_TIMEOUT");
      // Nobody waits for a rank that is as late as all others.
      const both = [0, 1].map((rank) => ({ ...late(2, 800), rank }));
      assert.equal((await endOf(both)).error, undefined);
    });

    it("a corrupted copy of a result is found where it was corrupted by expectRanksAgree", async () => {
      const faults: FaultSchedule = [
        { rank: 2, collective: A_STEP + 3, kind: "corrupt", payload: "received", element: 17, value: "flipped" },
      ];
      const simulation = await load({ model, worldSize: 3, faults });
      simulation.generate([1, 2, 3], 2);
      assert.throws(
        () => expectRanksAgree(simulation),
        (error) => {
          assert.ok(error instanceof SimulationAssertionError);
          const { layer, rank, index, expected, received } = error.details;
          assert.deepEqual([layer, rank, index], ["model.layers.0.mlp.down_proj", 2, [0, 17]]);
          assert.equal(received, -Number(expected));
          return true;
        },
      );
    });

    it("a number that is wrong before it is summed is agreed on by all ranks, and found by comparing logits", async () => {
      const faults: FaultSchedule = [
        { rank: 1, collective: 3, kind: "corrupt", payload: "sent", value: "flipped" },
        { rank: 0, collective: 9, kind: "corrupt", payload: "sent", value: "flipped" },
      ];
      const simulation = await load({ model, worldSize: 2, faults, verifyCollectives: true });
      simulation.generate([1, 2, 3], 2);
      assert.ok(expectRanksAgree(simulation) > 0);
      const faulty = await load({ model, worldSize: 2, faults });
      const sound = await faulty.unsharded();
      assert.throws(() => expectSameLogits(faulty, sound, 1e-4), SimulationAssertionError);
    });

    for (const kernels of nativeAddon().loaded ? (["reference", "native"] as const) : (["reference"] as const)) {
      it(`a request that ended in NaN leaves none to the next one that gets its memory, ${kernels}`, async () => {
        const faults: FaultSchedule = [{ rank: 1, collective: 1, kind: "corrupt", payload: "sent" }];
        const simulation = await load({ model, worldSize: 2, faults, kernels, maxSequences: 1, maxModelLength: 64 });
        const { promptTokenIds, sampling, answer } = PROMPT ?? assert.fail();
        // Longer than the one after it, whose blocks then hold more NaN than it overwrites.
        const long = Array.from({ length: 40 }, (_, i) => i + 1);
        await assert.rejects(collect(simulation.engine, long, sampling), { code: "NON_FINITE_LOGITS" });
        assert.deepEqual((await collect(simulation.engine, promptTokenIds, sampling)).tokenIds, answer);
      });
    }

    it("happen at collectives of models whose weights nobody has, while nothing of them is read", async () => {
      const config = publishedConfig("llama-3.1-405b");
      const faults: FaultSchedule = [
        { rank: 3, tensor: 1, kind: "shortRead" },
        { rank: 5, collective: 200, kind: "hang" },
      ];
      const simulation = await simulate({ config, worldSize: 8, shapeOnly: true, faults });
      assert.throws(() => simulation.step(), {
        code: "COLLECTIVE_TIMEOUT",
        message: /layers\.99\..*rank 5 did not arrive/,
      });
      await simulation.close();
    });
  });

  describe("on worker threads", () => {
    let threads: ThreadCount;
    let heldBefore: string[];

    beforeEach(() => {
      heldBefore = heldResources();
      threads = watchThreads();
    });

    afterEach(() => {
      threads.stop();
      assert.equal(threads.alive, 0, "threads are left behind");
      assert.deepEqual(heldResources(), heldBefore, "handles are left behind");
    });

    for (const [what, each] of Object.entries(CASES)) {
      it(`${what}: ${each.code}, and nothing is left of any thread`, async () => {
        const { faults, worldSize = 3, verifyCollectives } = each;
        const options = { model, worldSize, faults, verifyCollectives, timeouts: timeoutsFor(each) };
        const end = await askOnce(async () => {
          const engine = await launchWithFaults(options);
          return { engine, close: () => engine.close() };
        });
        expectEnd(each, end);
        assert.equal(threads.started, worldSize);
      });
    }

    it("all requests in flight end in the one error, and so do all that come later", async () => {
      const engine = await launchWithFaults({
        model,
        worldSize: 2,
        faults: [{ rank: 1, collective: 3 * A_STEP, kind: "exit" }],
      });
      const requests = [1, 2, 3].map((id) => ({ promptTokenIds: [id, 5], sampling: { maxTokens: 20 }, answer: [] }));
      const ends = await askAll(engine, requests);
      const [first, ...others] = ends.map(({ error }) => error);
      assert.equal(first?.code, "RANK_EXITED");
      for (const error of others) assert.equal(error, first);
      const [later] = await askAll(engine, requests);
      assert.equal(later?.error, first);
      await engine.close();
    });

    it("delays that nobody minds and faults that are never reached change no token", async () => {
      const engine = await launchWithFaults({
        model,
        worldSize: 3,
        faults: [
          { rank: 0, tensor: 4, kind: "delay", delayMs: 20 },
          { rank: 2, collective: 3, kind: "delay", delayMs: 30 },
          { rank: 1, collective: 9, kind: "delay", delayMs: 10 },
          { rank: 1, collective: 1000, kind: "exit" },
          { rank: 1, tensor: "model.layers.9.mlp.down_proj.weight", kind: "throw" },
        ],
      });
      const [end] = await askAll(engine, PROMPT === undefined ? [] : [PROMPT]);
      assert.deepEqual(end, { tokenIds: PROMPT?.answer });
      await engine.close();
    });

    it("plugins are named, as for launch(), and loaded by every thread", async () => {
      const plugins = [fileURLToPath(new URL("./named-plugin.js", import.meta.url))];
      const options = { model, worldSize: 2, plugins, loadFormat: "renamed" };
      const engine = await launchWithFaults({ ...options, faults: [] });
      const [end] = await askAll(engine, PROMPT === undefined ? [] : [PROMPT]);
      assert.deepEqual(end, { tokenIds: PROMPT?.answer });
      await engine.close();
      const faults: FaultSchedule = [{ rank: 1, tensor: 1, kind: "shortRead" }];
      await assert.rejects(launchWithFaults({ ...options, faults }), { code: "SHORT_READ" });
      await assert.rejects(launchWithFaults({ ...options, plugins: ["./no-such.js"], faults }), {
        code: "PLUGIN_NOT_FOUND",
      });
    });

    it("launch() can have ranks verify collectives, which changes no token", async () => {
      const { promptTokenIds, sampling, answer } = PROMPT ?? assert.fail();
      const engine = await launch({ model, tensorParallelSize: 3, verifyCollectives: true });
      assert.deepEqual((await collect(engine, promptTokenIds, sampling)).tokenIds, answer);
      await engine.close();
    });
  });

  describe("that there cannot be are refused, naming the field", () => {
    const refused: readonly (readonly [unknown, string])[] = [
      [{}, "faults"],
      [[null], "faults[0]"],
      [[{ rank: 2, collective: 1, kind: "hang" }], "faults[0].rank"],
      [[{ rank: -1, collective: 1, kind: "hang" }], "faults[0].rank"],
      [[{ rank: 0, kind: "hang" }], "faults[0]"],
      [[{ rank: 0, collective: 1, tensor: 1, kind: "hang" }], "faults[0]"],
      [[{ rank: 0, collective: 0, kind: "hang" }], "faults[0].collective"],
      [[{ rank: 0, tensor: "", kind: "hang" }], "faults[0].tensor"],
      [[{ rank: 0, tensor: 0.5, kind: "hang" }], "faults[0].tensor"],
      [[{ rank: 0, collective: 1, kind: "explode" }], "faults[0].kind"],
      [[{ rank: 0, collective: 1, kind: "shortRead" }], "faults[0].kind"],
      [[{ rank: 0, collective: 1, kind: "delay" }], "faults[0].delayMs"],
      [[{ rank: 0, collective: 1, kind: "exit", exitCode: 256 }], "faults[0].exitCode"],
      [[{ rank: 0, collective: 1, kind: "corrupt" }], "faults[0].payload"],
      [[{ rank: 0, collective: 1, kind: "corrupt", payload: "sent", element: -1 }], "faults[0].element"],
      [
        [
          { rank: 0, collective: 1, kind: "throw" },
          { rank: 0, tensor: 1, kind: "corrupt", value: "zero" },
        ],
        "faults[1].value",
      ],
    ];
    for (const [faults, option] of refused) {
      it(`${JSON.stringify(faults)}: ${option}`, async () => {
        const options = { model, worldSize: 2 };
        // As from plain JavaScript.
        Reflect.set(options, "faults", faults);
        const check = (error: unknown): boolean => {
          assert.ok(error instanceof OptionError, String(error));
          assert.equal(error.code, "INVALID_OPTION");
          assert.equal(error.details.option, option);
          return true;
        };
        await assert.rejects(simulate(options), check);
        await assert.rejects(launchWithFaults({ faults: [], ...options }), check);
      });
    }
  });

  it("can be read", () => {
    const faults: FaultSchedule = [
      { rank: 1, collective: 7, kind: "delay", delayMs: 20 },
      { rank: 0, tensor: "lm_head.weight", kind: "shortRead" },
      { rank: 3, tensor: 2, kind: "exit" },
      { rank: 2, collective: 1, kind: "corrupt", payload: "received", element: 3, value: "flipped" },
    ];
    assert.deepEqual(faults.map(describeFault), [
      "rank 1, collective 7: delay of 20 ms",
      "rank 0, tensor lm_head.weight: shortRead",
      "rank 3, tensor 2: exit with 1",
      "rank 2, collective 1: corrupt (received, element 3, flipped)",
    ]);
  });
});
