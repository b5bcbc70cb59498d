import assert from "node:assert/strict";
import type { StepPlan } from "../../src/engine/scheduler.js";
import { Sequence } from "../../src/engine/sequence.js";
import { StepsAhead } from "../../src/engine/steps-ahead.js";

/** A step that computes so many tokens of one sequence, and samples from the last. */
function stepOf(tokens: number): { readonly plan: StepPlan } {
  const sequences = [new Sequence(0, { kind: "score" }, [1, 2])];
  return { plan: { sequences, firstOutputs: [0], outputCounts: [1], tokens, outputs: 1 } };
}

const DECODING = stepOf(1);
const PROMPT = stepOf(9);

/** The loop of an engine without the engine: ranks never wait. */
class Loop {
  #now = 0;
  readonly ahead: StepsAhead;
  readonly flights: { readonly plan: StepPlan }[] = [];

  constructor(most: number) {
    this.ahead = new StepsAhead(most, () => this.#now);
  }

  /** Begins steps like this one, as many as may be; returns how many are in flight then. */
  begin(step = DECODING): number {
    while (this.ahead.room) {
      this.ahead.begun(step.plan);
      this.flights.push(step);
    }
    return this.flights.length;
  }

  pass(ms: number): void {
    this.#now += ms;
  }

  take(stepMs: number): void {
    const { awaited } = this.ahead;
    this.#now += awaited * stepMs;
    this.ahead.taken(this.flights.splice(0, awaited));
  }

  /** Steps in flight once the duration of a step is known. */
  settle(stepMs: number): number {
    for (let round = 0; round < 20; round++) {
      this.begin();
      this.take(stepMs);
    }
    return this.begin();
  }
}

describe("how many steps the engine has in flight", () => {
  it("is as many as end within 10 ms, at least two, at most what there are arrays for", () => {
    for (const [stepMs, expected] of [
      [0, 4],
      [0.5, 4],
      [3.2, 4],
      [4, 3],
      [6, 2],
      [1000, 2],
    ] as const) {
      assert.equal(new Loop(4).settle(stepMs), expected, `steps of ${stepMs} ms`);
    }
    assert.equal(new Loop(1).settle(0.1), 1);
    assert.equal(new Loop(2).settle(0.1), 2);
  });

  it("is two as long as nothing is known of the duration of a step", () => {
    assert.equal(new Loop(4).begin(), 2);
  });

  it("is two while a prompt is among them: its first token comes when its step is done", () => {
    const loop = new Loop(4);
    loop.settle(0.1);
    loop.take(0.1);
    assert.equal(loop.flights.length, 1);
    assert.equal(loop.begin(PROMPT), 2);
    assert.equal(loop.ahead.awaited, 1);
    loop.take(0.1);
    assert.equal(loop.begin(), 2, "the prompt is in flight");
    loop.take(50);
    assert.equal(loop.begin(), 4, "the prompt's duration does not count");
  });

  it("leaves the ranks one step to go on with, and none behind when there is no other", () => {
    const loop = new Loop(4);
    assert.equal(loop.ahead.awaited, 0);
    loop.ahead.begun(DECODING.plan);
    assert.equal(loop.ahead.awaited, 1);
    loop.ahead.begun(DECODING.plan);
    assert.equal(loop.ahead.awaited, 1);
    const settled = new Loop(4);
    settled.settle(0.1);
    assert.equal(settled.ahead.awaited, 3);
  });

  it("does not count the time in which nothing was in flight", () => {
    const loop = new Loop(4);
    loop.settle(0.1);
    while (loop.flights.length > 0) loop.take(0.1);
    loop.pass(60_000);
    assert.equal(loop.begin(), 4);
    loop.take(0.1);
    assert.equal(loop.begin(), 4);
  });
});
