import assert from "node:assert/strict";
import fc from "fast-check";
import { BlockPool } from "../../src/engine/kv-cache.js";
import { resolveSampling } from "../../src/engine/sampling.js";
import { Scheduler, type SchedulerLimits, type StepPlan } from "../../src/engine/scheduler.js";
import { Sequence } from "../../src/engine/sequence.js";

const sampling = resolveSampling(
  {},
  { vocabularySize: 10, maxLogprobs: 0, room: 1000, endOfSequenceIds: [], hasTokenizer: false, drawSeed: () => 0 },
);

const prompt = (length: number): number[] => Array.from({ length }, (_, i) => i % 10);
const generating = (id: number, length: number): Sequence =>
  new Sequence(id, { kind: "generate", sampling }, prompt(length));
const scoring = (id: number, length: number): Sequence => new Sequence(id, { kind: "score" }, prompt(length));

/** [id, tokens, outputs] of every sequence in a plan. */
const partsOf = (plan: StepPlan): number[][] => plan.sequences.map((s) => [s.id, s.stepTokens, s.stepOutputs]);

const LIMITS: SchedulerLimits = { maxTokens: 8, maxSequences: 4, maxOutputs: 4, maxBlocksPerSequence: 100 };

function setUp(limits: Partial<SchedulerLimits> = {}, blocks = 100, blockSize = 2) {
  const pool = new BlockPool(blocks, blockSize);
  return { pool, scheduler: new Scheduler({ ...LIMITS, ...limits }, pool, 2) };
}

/** Runs a step as the engine does: every sampled sequence gets a token, every score is noted. */
function run(scheduler: Scheduler): number[][] {
  const plan = scheduler.schedule();
  const parts = partsOf(plan);
  scheduler.advance();
  for (const sequence of plan.sequences) {
    if (sequence.task.kind === "score") sequence.addScores(sequence.stepOutputs);
    else if (sequence.stepOutputs > 0) sequence.append(0);
  }
  return parts;
}

describe("the scheduler", () => {
  it("computes a prompt in chunks of the token budget and samples after the last one only", () => {
    const { scheduler } = setUp();
    scheduler.add(generating(0, 19));
    assert.deepEqual(
      [run(scheduler), run(scheduler), run(scheduler), run(scheduler)],
      [[[0, 8, 0]], [[0, 8, 0]], [[0, 3, 1]], [[0, 1, 1]]],
    );
  });

  it("lets running sequences decode first and fills the step with the prompts of new ones, in order", () => {
    const { scheduler } = setUp();
    scheduler.add(generating(0, 3));
    run(scheduler);
    for (const [id, length] of [
      [1, 2],
      [2, 9],
      [3, 1],
    ] as const)
      scheduler.add(generating(id, length));
    assert.deepEqual(run(scheduler), [
      [0, 1, 1],
      [1, 2, 1],
      [2, 5, 0],
    ]);
    assert.deepEqual(run(scheduler), [
      [0, 1, 1],
      [1, 1, 1],
      [2, 4, 1],
      [3, 1, 1],
    ]);
  });

  it("runs at most maxSequences at once", () => {
    const { scheduler } = setUp({ maxSequences: 2 });
    for (let id = 0; id < 3; id++) scheduler.add(generating(id, 1));
    assert.deepEqual(run(scheduler), [
      [0, 1, 1],
      [1, 1, 1],
    ]);
    assert.deepEqual([scheduler.running, scheduler.waiting], [2, 1]);
  });

  it("leaves the last token of a prompt for a later step when no output is left for it", () => {
    const { scheduler } = setUp({ maxOutputs: 1 });
    scheduler.add(generating(0, 2));
    scheduler.add(generating(1, 3));
    assert.deepEqual(run(scheduler), [
      [0, 2, 1],
      [1, 2, 0],
    ]);
  });

  it("scores a text in chunks of the output budget, and never computes its last token", () => {
    const { scheduler } = setUp({ maxOutputs: 4, maxTokens: 8 });
    scheduler.add(scoring(0, 10));
    assert.deepEqual([run(scheduler), run(scheduler), run(scheduler)], [[[0, 4, 4]], [[0, 4, 4]], [[0, 1, 1]]]);
  });

  it("does not let a later request overtake one that waits for blocks", () => {
    const { scheduler } = setUp({}, 8, 2);
    scheduler.add(generating(0, 7));
    scheduler.add(generating(1, 10));
    scheduler.add(generating(2, 1));
    assert.deepEqual(run(scheduler), [[0, 7, 1]]);
    assert.deepEqual(run(scheduler), [[0, 1, 1]]);
    assert.equal(scheduler.waiting, 2);
  });

  it("keeps a block for each running sequence, so that it does not admit what it would preempt at once", () => {
    const { scheduler } = setUp({}, 4, 2);
    scheduler.add(generating(0, 4));
    scheduler.add(generating(1, 4));
    assert.deepEqual(run(scheduler), [[0, 4, 1]]);
    assert.deepEqual(run(scheduler), [[0, 1, 1]]);
    assert.equal(scheduler.preemptions, 0);
  });

  it("preempts the youngest sequence when blocks run out, and computes all its tokens anew later", () => {
    const { scheduler, pool } = setUp({}, 4, 2);
    const old = generating(0, 3);
    const young = generating(1, 1);
    scheduler.add(old);
    scheduler.add(young);
    assert.deepEqual(run(scheduler), [
      [0, 3, 1],
      [1, 1, 1],
    ]);
    assert.deepEqual(run(scheduler), [
      [0, 1, 1],
      [1, 1, 1],
    ]);
    // Three of four blocks are held and both need one more: the old one takes it, the young one gives way.
    assert.deepEqual(run(scheduler), [[0, 1, 1]]);
    assert.deepEqual([young.status, young.computed, young.length, scheduler.preemptions], ["waiting", 0, 3, 1]);
    scheduler.finish(old, "length");
    assert.deepEqual(run(scheduler), [[1, 3, 1]]);
    assert.equal(young.outputLength, 3);
    scheduler.finish(young, "stop");
    assert.equal(pool.freeBlocks, 4);
  });

  it("does not ask again for scores that were known before a preemption", () => {
    const { scheduler } = setUp({ maxOutputs: 2, maxTokens: 8 }, 7, 2);
    const old = generating(0, 3);
    const text = scoring(1, 8);
    scheduler.add(old);
    assert.deepEqual(run(scheduler), [[0, 3, 1]]);
    scheduler.add(text);
    const parts = Array.from({ length: 3 }, () => run(scheduler));
    assert.deepEqual(parts, [
      [
        [0, 1, 1],
        [1, 1, 1],
      ],
      [
        [0, 1, 1],
        [1, 1, 1],
      ],
      [
        [0, 1, 1],
        [1, 1, 1],
      ],
    ]);
    assert.equal(text.scored, 3);
    run(scheduler);
    assert.deepEqual([text.status, text.computed, text.scored], ["waiting", 0, 3]);
    scheduler.finish(old, "length");
    assert.deepEqual(run(scheduler), [[1, 5, 2]]);
    assert.deepEqual(run(scheduler), [[1, 2, 2]]);
  });

  it("frees the blocks of a sequence that is given up while a step runs, at once", () => {
    const { scheduler, pool } = setUp();
    const sequence = generating(0, 5);
    scheduler.add(sequence);
    scheduler.schedule();
    scheduler.advance();
    scheduler.finish(sequence, "abort");
    assert.equal(pool.freeBlocks, 100);
    assert.deepEqual([sequence.finishReason, scheduler.hasWork], ["abort", false]);
    assert.deepEqual(partsOf(scheduler.schedule()), []);
    scheduler.finish(sequence, "stop");
    assert.equal(sequence.finishReason, "abort");
  });

  it("plans the token after one that is not known yet, and says which output of the step before chooses it", () => {
    const { scheduler } = setUp();
    for (const id of [0, 1]) scheduler.add(generating(id, 2));
    const first = scheduler.schedule();
    scheduler.advance();
    const second = scheduler.schedule();
    assert.deepEqual(partsOf(second), [
      [0, 1, 1],
      [1, 1, 1],
    ]);
    assert.deepEqual(
      second.sequences.map(({ feed, computed, length }) => [feed, computed, length]),
      [
        [0, 2, 2],
        [1, 2, 2],
      ],
    );
    scheduler.advance();
    // The plan of the step that still runs is kept.
    assert.deepEqual(
      [first.firstOutputs, first.outputCounts],
      [
        [0, 1],
        [1, 1],
      ],
    );
  });

  it("plans nothing beyond the last token that a sequence may have, whatever is still in flight", () => {
    const { scheduler } = setUp();
    const sequence = new Sequence(0, { kind: "generate", sampling: { ...sampling, maxTokens: 2 } }, prompt(2));
    scheduler.add(sequence);
    for (const expected of [1, 2, 2]) {
      scheduler.schedule();
      scheduler.advance();
      assert.equal(sequence.expected, expected);
    }
    assert.equal(scheduler.schedule().tokens, 0);
  });

  interface Arrival {
    readonly at: number;
    readonly score: boolean;
    readonly length: number;
    readonly outputs: number;
    readonly abortAfter: number | null;
  }

  const arrival: fc.Arbitrary<Arrival> = fc.record({
    at: fc.nat(12),
    score: fc.boolean(),
    length: fc.integer({ min: 2, max: 30 }),
    outputs: fc.integer({ min: 1, max: 12 }),
    abortAfter: fc.option(fc.nat(15), { freq: 3 }),
  });

  for (const inFlight of [1, 2, 4]) {
    it(`computes every token once, keeps every budget, loses no block and serves everyone in order, ${inFlight} step(s) in flight`, () => {
      checkServing(inFlight);
    });
  }

  function checkServing(inFlight: number): void {
    fc.assert(
      fc.property(
        fc.record({
          maxTokens: fc.integer({ min: 1, max: 20 }),
          maxSequences: fc.integer({ min: 1, max: 6 }),
          maxOutputs: fc.integer({ min: 1, max: 8 }),
          maxBlocksPerSequence: fc.constant(1000),
        }),
        fc.integer({ min: 1, max: 4 }),
        fc.nat(30),
        fc.array(arrival, { minLength: 1, maxLength: 12 }),
        (limits, blockSize, spareBlocks, arrivals) => {
          // Just enough for the longest sequence, and now and then some more: preemption is the rule here.
          const longest = Math.max(...arrivals.map(({ length, outputs }) => length + outputs));
          simulate(limits, Math.ceil(longest / blockSize) + spareBlocks, blockSize, arrivals, inFlight);
        },
      ),
      { numRuns: 400 },
    );
  }

  function simulate(
    limits: SchedulerLimits,
    blocks: number,
    blockSize: number,
    arrivals: readonly Arrival[],
    inFlight: number,
  ): void {
    const pool = new BlockPool(blocks, blockSize);
    const scheduler = new Scheduler(limits, pool, inFlight);
    const queue = arrivals.map((item) => ({ ...item, sequence: null as Sequence | null })).sort((a, b) => a.at - b.at);
    const cached = new Map<Sequence, number>();
    let lastAdmitted = -1;
    const flights: StepPlan[] = [];
    const deliver = (plan: StepPlan): void => {
      for (const [i, sequence] of plan.sequences.entries()) {
        take(scheduler, sequence, plan.outputCounts[i] ?? 0, queue[sequence.id]?.outputs ?? 0);
      }
    };
    for (let step = 0, next = 0; next < queue.length || scheduler.hasWork; step++) {
      assert.ok(step < 5000, "everyone is served within bounded time");
      for (; next < queue.length && (queue[next]?.at ?? 0) <= step; next++) {
        const item = queue[next] ?? assert.fail();
        item.sequence = item.score ? scoring(next, item.length) : generating(next, item.length);
        scheduler.add(item.sequence);
      }
      for (const { sequence, at, abortAfter } of queue) {
        if (sequence !== null && abortAfter !== null && step >= at + abortAfter) scheduler.finish(sequence, "abort");
      }
      const hadWork = scheduler.hasWork;
      const plan = scheduler.schedule();
      if (flights.length === 0) assert.equal(plan.tokens > 0, hadWork, "a step makes progress");
      checkPlan(plan, limits, pool, cached);
      checkOrder(queue.flatMap(({ sequence }) => sequence ?? []));
      for (const sequence of plan.sequences) {
        if (!cached.has(sequence)) {
          assert.ok(sequence.id > lastAdmitted, "first come, first served");
          lastAdmitted = sequence.id;
        }
        cached.set(sequence, sequence.computed + sequence.stepTokens);
      }
      scheduler.advance();
      if (plan.tokens > 0) flights.push(plan);
      const done = flights.length === inFlight || plan.tokens === 0 ? flights.shift() : undefined;
      if (done !== undefined) deliver(done);
      checkBlocks(
        queue.flatMap(({ sequence }) => sequence ?? []),
        pool,
      );
    }
    flights.forEach(deliver);
    assert.equal(pool.freeBlocks, blocks, "all blocks come back");
    for (const { sequence, score, length, outputs } of queue) {
      if (sequence?.finishReason === "abort") continue;
      assert.equal(sequence?.finishReason, "length", "nobody starves");
      assert.equal(score ? sequence.scored : sequence.outputLength, score ? length - 1 : outputs);
    }
  }

  function checkPlan(plan: StepPlan, limits: SchedulerLimits, pool: BlockPool, cached: Map<Sequence, number>): void {
    assert.ok(plan.tokens <= limits.maxTokens && plan.outputs <= limits.maxOutputs);
    assert.ok(plan.sequences.length <= limits.maxSequences);
    assert.equal(new Set(plan.sequences).size, plan.sequences.length, "a sequence stands in a step once");
    assert.equal(
      plan.tokens,
      plan.sequences.reduce((sum, { stepTokens }) => sum + stepTokens, 0),
    );
    let outputs = 0;
    for (const sequence of plan.sequences) {
      assert.ok(sequence.stepTokens > 0 && sequence.stepTokens <= sequence.pending);
      // From the beginning after a preemption, else exactly where the step before left off.
      assert.ok(sequence.computed === 0 || sequence.computed === cached.get(sequence));
      assert.ok(sequence.blocks.length * pool.blockSize >= sequence.computed + sequence.stepTokens);
      assert.equal(sequence.firstOutput, outputs);
      outputs += sequence.stepOutputs;
      if (sequence.task.kind === "generate") {
        assert.equal(sequence.stepOutputs, sequence.stepTokens === sequence.pending ? 1 : 0);
      } else {
        const scored = Math.max(sequence.scored, sequence.computed);
        assert.equal(sequence.stepOutputs, Math.max(0, sequence.computed + sequence.stepTokens - scored));
      }
    }
    assert.equal(outputs, plan.outputs);
  }

  function checkOrder(sequences: readonly Sequence[]): void {
    const ids = (status: string): number[] => sequences.filter((s) => s.status === status).map(({ id }) => id);
    assert.ok(Math.max(-1, ...ids("running")) < Math.min(Infinity, ...ids("waiting")), "nobody is overtaken");
  }

  /** The results of a step come: the sequence goes on, or ends. */
  function take(scheduler: Scheduler, sequence: Sequence, results: number, outputs: number): void {
    if (sequence.status === "finished" || results === 0) return;
    if (sequence.task.kind === "score") {
      sequence.addScores(results);
      if (sequence.scored === sequence.length - 1) scheduler.finish(sequence, "length");
      return;
    }
    sequence.append(1);
    if (sequence.outputLength === outputs) scheduler.finish(sequence, "length");
  }

  function checkBlocks(sequences: readonly Sequence[], pool: BlockPool): void {
    const held = sequences.flatMap(({ blocks }) => Array.from({ length: blocks.length }, (_, i) => blocks.at(i)));
    assert.equal(new Set(held).size, held.length, "a block belongs to one sequence");
    assert.equal(held.length + pool.freeBlocks, pool.blocks, "no block leaks");
    for (const { status, blocks } of sequences) if (status !== "running") assert.equal(blocks.length, 0);
  }
});
