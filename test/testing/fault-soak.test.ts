import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import fc from "fast-check";
import type { CoordinatorTimeouts } from "../../src/coordinator/timeouts.js";
import type { Engine } from "../../src/engine/engine.js";
import { launchWithFaults, simulate } from "../../src/testing/index.js";
import { heldResources, watchThreads } from "../coordinator/threads.js";
import { fixture } from "../fixture.js";
import { readGolden } from "../models/golden.js";
import {
  askAll,
  checkLoadError,
  checkOutcomes,
  expectationOf,
  type Facts,
  type FaultCase,
  type FaultWeights,
  faultCases,
  isPause,
  observe,
  type Subject,
} from "./fault-cases.js";
import { manyHeads, tiny } from "./models.js";

/** Schedules in one thread, and on worker threads. */
const IN_TURNS = 936;
const ON_THREADS = 64;

/** More threads than that have more of the same to go through. */
const MAX_THREADS = 4;

/** A schedule on threads that takes this long has hung. */
const WATCHDOG_MS = 30_000;
/** Deadlines that are not to be met. */
const LONG_MS = 120_000;

/** To be set to what a failure prints. */
const seed = Number(process.env["SHARDLOOM_FAULT_SEED"] ?? randomInt(2 ** 31));

/** Half of the steps choose by exchanging maxima, the others by gathering whole rows. */
const samplings = [{ maxTokens: 6 }, { maxTokens: 4, logprobs: 1 }] as const;

function tinyLlama(): Subject {
  const { prompts } = readGolden(fixture("tiny/llama/bf16.golden.json"));
  const requests = samplings.map((sampling, i) => {
    const { promptIds, generatedIds } = prompts[i] ?? assert.fail();
    return { promptTokenIds: promptIds, sampling, answer: generatedIds.slice(0, sampling.maxTokens) };
  });
  return { name: "tiny llama", model: { model: tiny("llama") }, requests, maxWorldSize: 4 };
}

/** Without a golden of its own: its answers are those of one rank. */
async function manyRanks(): Promise<Subject> {
  const model = { config: manyHeads(8, 4, { hidden_size: 32, head_dim: 4, eos_token_id: 0 }), seed: 3 };
  const alone = await simulate({ ...model, worldSize: 1 });
  const prompts = [
    [5, 9, 2],
    [17, 3, 3, 8],
  ];
  const requests = samplings.map((sampling, i) => {
    const promptTokenIds = prompts[i] ?? assert.fail();
    return { promptTokenIds, sampling, answer: alone.generate(promptTokenIds, sampling.maxTokens).tokenIds };
  });
  await alone.close();
  return { name: "dummy model", model, requests, maxWorldSize: 8 };
}

/** The promise's value; an AssertionError if it does not settle in time. */
async function within<Value>(limitMs: number, promise: Promise<Value>): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new assert.AssertionError({ message: `it hangs: not over in ${limitMs} ms` })),
      limitMs,
    );
  });
  try {
    return await Promise.race([promise, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

/** After the group has failed nothing is served any more; and it can be closed. */
async function close(engine: Engine, { subject }: FaultCase, failed: boolean): Promise<void> {
  if (failed) {
    const [again] = await askAll(engine, subject.requests);
    assert.ok(again?.error !== undefined, "a request was served after the group had failed");
  }
  await engine.close();
}

describe(`a soak of ${IN_TURNS + ON_THREADS} fault schedules, SHARDLOOM_FAULT_SEED=${seed}`, function () {
  this.timeout(600_000);
  const observed = new Map<Subject, Facts[]>();

  before(async () => {
    for (const subject of [tinyLlama(), await manyRanks()]) {
      const facts: Facts[] = [];
      for (let worldSize = 1; worldSize <= subject.maxWorldSize; worldSize++) {
        facts.push(await observe(subject, worldSize));
      }
      observed.set(subject, facts);
    }
  });

  it(`in turns: ${IN_TURNS} schedules end in their documented errors, or in the right tokens`, async () => {
    const weights: FaultWeights = [
      ["throw", 3],
      ["delay", 4],
      ["late", 2],
      ["hang", 3],
      ["exit", 3],
      ["exhaust", 2],
      ["corruptSent", 4],
      ["corruptReceived", 4],
      ["flipReceived", 4],
      ["throwAtTensor", 1],
      ["delayAtTensor", 2],
      ["hangAtTensor", 1],
      ["exitAtTensor", 1],
      ["shortRead", 1],
      ["refuseMemory", 1],
      ["corruptTensor", 2],
    ];
    const timeouts = { startTimeoutMs: 5000, stepTimeoutMs: 10_000, collectiveTimeoutMs: 2000 };
    const property = fc.asyncProperty(
      faultCases(observed, weights),
      fc.constantFrom("byRank", "reversed", "shuffled"),
      async (drawn, order) => {
        const { subject, worldSize, verifyCollectives, faults } = drawn;
        const expected = expectationOf(drawn);
        const options = { ...subject.model, worldSize, verifyCollectives, faults, timeouts, order } as const;
        const loading = await simulate(options).catch((error: unknown) => ({ error }));
        if ("error" in loading) {
          checkLoadError(expected, loading.error);
          return;
        }
        const outcomes = await askAll(loading.engine, subject.requests);
        checkOutcomes(drawn, expected, outcomes);
        await close(loading.engine, drawn, expected.mustFail);
        await loading.close();
      },
    );
    await fc.assert(property, { seed, numRuns: IN_TURNS });
  });

  describe("on worker threads", () => {
    /** Short where a rank stays away, so that the test need not wait; long elsewhere, so that a slow machine fails nothing. */
    function timeoutsFor({ faults, worldSize }: FaultCase): CoordinatorTimeouts {
      const pauses = faults.filter(isPause);
      const inSteps = pauses.flatMap((fault) => ("collective" in fault ? [fault.collective] : []));
      const allAway = inSteps.some((at) => {
        const away = pauses.filter((fault) => "collective" in fault && fault.collective === at);
        return new Set(away.map(({ rank }) => rank)).size === worldSize;
      });
      return {
        startTimeoutMs: inSteps.length < pauses.length ? 2500 : LONG_MS,
        stepTimeoutMs: allAway ? 3000 : LONG_MS,
        collectiveTimeoutMs: inSteps.length > 0 ? 800 : LONG_MS,
        closeTimeoutMs: 10_000,
      };
    }

    /** Threads choose their kernels by the environment, and meet by the addon or on Atomics accordingly. */
    async function launchOn(kernels: string | undefined, drawn: FaultCase): Promise<Engine> {
      const { subject, worldSize, verifyCollectives, faults } = drawn;
      const before = process.env["SHARDLOOM_KERNELS"];
      if (kernels !== undefined) process.env["SHARDLOOM_KERNELS"] = kernels;
      try {
        const timeouts = timeoutsFor(drawn);
        return await launchWithFaults({ ...subject.model, worldSize, verifyCollectives, faults, timeouts });
      } finally {
        if (before === undefined) delete process.env["SHARDLOOM_KERNELS"];
        else process.env["SHARDLOOM_KERNELS"] = before;
      }
    }

    async function run(kernels: string | undefined, drawn: FaultCase): Promise<void> {
      const expected = expectationOf(drawn);
      const loading = await launchOn(kernels, drawn).catch((error: unknown) => ({ error }));
      if ("error" in loading) {
        checkLoadError(expected, loading.error);
        return;
      }
      const outcomes = await askAll(loading, drawn.subject.requests);
      await close(loading, drawn, expected.mustFail);
      checkOutcomes(drawn, expected, outcomes);
    }

    it(`${ON_THREADS} schedules end likewise, each in bounded time, and leave no thread and no handle`, async () => {
      const weights: FaultWeights = [
        ["throw", 4],
        ["delay", 6],
        ["late", 1],
        ["hang", 1],
        ["exit", 4],
        ["exhaust", 2],
        ["corruptSent", 3],
        ["corruptReceived", 4],
        ["flipReceived", 5],
        ["throwAtTensor", 1],
        ["delayAtTensor", 2],
        ["hangAtTensor", 1],
        ["exitAtTensor", 1],
        ["shortRead", 1],
        ["refuseMemory", 1],
        ["corruptTensor", 2],
      ];
      const few = new Map([...observed].map(([subject, facts]) => [subject, facts.slice(0, MAX_THREADS)]));
      const property = fc.asyncProperty(
        fc.constantFrom("reference", undefined),
        faultCases(few, weights),
        async (kernels, drawn) => {
          const heldBefore = heldResources();
          const threads = watchThreads();
          try {
            await within(WATCHDOG_MS, run(kernels, drawn));
          } finally {
            threads.stop();
          }
          assert.equal(threads.started, drawn.worldSize);
          assert.equal(threads.alive, 0, "threads are left behind");
          assert.deepEqual(heldResources(), heldBefore, "handles are left behind");
        },
      );
      // Shrinking launches threads as well; the time of the test must not be over before it can tell.
      const limits = { interruptAfterTimeLimit: 300_000, markInterruptAsFailure: true };
      await fc.assert(property, { seed, numRuns: ON_THREADS, ...limits });
    });
  });
});
