import assert from "node:assert/strict";
import { RankError } from "../../src/core/errors.js";
import { STEP_FED } from "../../src/rank/step.js";
import { answerTo, engineFixture, gate } from "./engine-fixture.js";
import { typedError } from "./errors.js";
import { answerOf } from "./toy-model.js";

const VOCABULARY = 97;

describe("two steps in flight", () => {
  it("are begun before the first has its results, and take tokens from each other", async () => {
    const { engine, executor } = engineFixture({ stepsInFlight: 2 });
    const fed: unknown[] = [];
    executor.beforeStep = () => {
      fed.push(executor.step.views.header[STEP_FED]);
    };
    const { tokenIds } = await answerTo(engine, { promptTokenIds: [5, 7], sampling: { maxTokens: 6 } });
    assert.deepEqual(tokenIds, answerOf([5, 7], 6, VOCABULARY));
    // One a token: that it will have all of them is known in time.
    assert.deepEqual(fed, [0, 1, 1, 1, 1, 1]);
  });

  it("leave no trace of what was computed of an answer after its last token", async () => {
    const [first, second] = [answerOf([3, 1], 10, VOCABULARY), answerOf([9], 10, VOCABULARY)];
    const endOfSequence = first[4] ?? 0;
    const { engine, executor } = engineFixture({ stepsInFlight: 2, endOfSequenceIds: [endOfSequence] });
    const end = first.indexOf(endOfSequence) + 1;
    const answer = await answerTo(engine, { promptTokenIds: [3, 1] });
    assert.deepEqual([answer.tokenIds, answer.finishReason], [first.slice(0, end), "stop"]);
    const next = await answerTo(engine, { promptTokenIds: [9], sampling: { maxTokens: 3, ignoreEndOfSequence: true } });
    assert.deepEqual(next.tokenIds, second.slice(0, 3));
    assert.ok(executor.history.length <= end + 1 + 3);
    assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
  });

  it("both end with the error of the first that fails", async () => {
    const { engine, executor } = engineFixture({ stepsInFlight: 2 });
    const failure = new RankError("RANK_EXITED", "rank 0 exited");
    executor.beforeStep = (step) => {
      if (step === 2) throw failure;
    };
    await assert.rejects(
      answerTo(engine, { promptTokenIds: [1], sampling: { maxTokens: 9 } }),
      typedError(RankError, "RANK_EXITED", /rank 0/),
    );
    assert.equal(executor.history.length, 3, "no step is run after a failure");
  });

  it("give a request its part as soon as one of them is done", async () => {
    const { engine, executor } = engineFixture({ stepsInFlight: 2 });
    const { opened, open } = gate();
    executor.beforeStep = (step) => (step === 0 ? opened : undefined);
    const first = answerTo(engine, { promptTokenIds: [1], sampling: { maxTokens: 8 } });
    await new Promise((resolve) => setImmediate(resolve));
    const second = answerTo(engine, { promptTokenIds: [2], sampling: { maxTokens: 2 } });
    open();
    assert.deepEqual((await first).tokenIds, answerOf([1], 8, VOCABULARY));
    assert.deepEqual((await second).tokenIds, answerOf([2], 2, VOCABULARY));
    assert.deepEqual(
      executor.history.slice(0, 4).map(({ sequences }) => sequences),
      [1, 1, 2, 2],
    );
  });

  it("pass a token over that could not be chosen: its request fails, and only that", async () => {
    const { engine, executor } = engineFixture({ stepsInFlight: 2 });
    executor.afterStep = (step) => {
      if (step === 1) executor.step.views.resultIds[0] = -1;
    };
    const [broken, sound] = await Promise.allSettled(
      [1, 2].map((id) => answerTo(engine, { promptTokenIds: [id], sampling: { maxTokens: 5 } })),
    );
    assert.equal(broken?.status, "rejected");
    assert.ok(sound?.status === "fulfilled");
    assert.deepEqual(sound.value.tokenIds, answerOf([2], 5, VOCABULARY));
  });
});

describe("more than two steps in flight", () => {
  it("leave no trace of what was computed of an answer after its last token", async () => {
    const [first, second] = [answerOf([3, 1], 20, VOCABULARY), answerOf([9], 20, VOCABULARY)];
    const endOfSequence = first[12] ?? 0;
    const end = first.indexOf(endOfSequence) + 1;
    const settings = { stepsInFlight: 4, endOfSequenceIds: [endOfSequence], engine: { now: () => 0 } };
    const { engine } = engineFixture(settings);
    const others = answerTo(engine, { promptTokenIds: [9], sampling: { maxTokens: 20, ignoreEndOfSequence: true } });
    const answer = await answerTo(engine, { promptTokenIds: [3, 1] });
    assert.deepEqual([answer.tokenIds, answer.finishReason], [first.slice(0, end), "stop"]);
    assert.deepEqual((await others).tokenIds, second);
    assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
  });
});
