import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { InternalError, RankError, RequestError } from "../../src/core/errors.js";
import type { Engine } from "../../src/engine/engine.js";
import { answerTo, deltasOf, engineFixture, gate } from "./engine-fixture.js";
import { typedError } from "./errors.js";
import { answerOf } from "./toy-model.js";

const request = (id: number, maxTokens = 10) => ({ promptTokenIds: [id], sampling: { maxTokens } });
const closed = typedError(RequestError, "ENGINE_CLOSED", /closed/);

/** Nothing may be rejected without anybody to hear it: that would end the process. */
function watchUnhandledRejections(): void {
  const seen: unknown[] = [];
  const onUnhandled = (reason: unknown): void => {
    seen.push(reason);
  };
  before(() => process.on("unhandledRejection", onUnhandled));
  after(async () => {
    await new Promise((resolve) => setImmediate(resolve));
    process.off("unhandledRejection", onUnhandled);
    assert.deepEqual(seen, []);
  });
}

function assertIdle(engine: Engine): void {
  const { running, waiting, blocks, freeBlocks } = engine.stats;
  assert.deepEqual({ running, waiting, freeBlocks }, { running: 0, waiting: 0, freeBlocks: blocks });
}

describe("giving up a request", () => {
  watchUnhandledRejections();

  it("by its signal while a step runs frees its blocks at once, and leaves the others alone", async () => {
    const { engine, executor } = engineFixture();
    const controller = new AbortController();
    executor.beforeStep = (step) => {
      if (step !== 3) return;
      const before = engine.stats.freeBlocks;
      controller.abort();
      assert.ok(engine.stats.freeBlocks > before);
    };
    const [aborted, other] = await Promise.all([
      deltasOf(engine, request(1), { signal: controller.signal }),
      answerTo(engine, request(2)),
    ]);
    assert.equal(aborted.at(-1)?.finishReason, "abort");
    assert.deepEqual(
      aborted.flatMap(({ tokenIds }) => tokenIds),
      answerOf([1], 3, 97),
    );
    assert.ok(aborted.at(-1)?.timings !== undefined);
    assert.deepEqual(other.tokenIds, answerOf([2], 10, 97));
    assertIdle(engine);
  });

  it("while it waits for its first step ends it without one", async () => {
    const { engine, executor } = engineFixture({ limits: { maxSequences: 1 } });
    const controller = new AbortController();
    executor.beforeStep = (step) => {
      if (step === 2) controller.abort();
    };
    const [first, second] = await Promise.all([
      answerTo(engine, request(1)),
      deltasOf(engine, request(2), { signal: controller.signal }),
    ]);
    assert.equal(first.finishReason, "length");
    assert.deepEqual(
      second.map(({ tokenIds, finishReason }) => [tokenIds, finishReason]),
      [[[], "abort"]],
    );
    assert.equal(second[0]?.timings?.ttftMs, null);
    assertIdle(engine);
  });

  it("is possible from an event of the process, however fast steps are", async () => {
    const { engine } = engineFixture();
    const controller = new AbortController();
    setImmediate(() => controller.abort());
    const answer = await answerTo(engine, request(1, 60), { signal: controller.signal });
    assert.equal(answer.finishReason, "abort");
  });

  it("before it begins runs nothing", async () => {
    const { engine, executor } = engineFixture();
    const answer = await answerTo(engine, request(1), { signal: AbortSignal.abort() });
    assert.deepEqual([answer.tokenIds, answer.finishReason], [[], "abort"]);
    assert.equal(executor.history.length, 0);
  });

  it("by leaving the loop frees its blocks", async () => {
    const { engine } = engineFixture();
    for await (const delta of engine.generate(request(1, 50))) {
      assert.equal(delta.tokenIds.length, 1);
      break;
    }
    assertIdle(engine);
    assert.deepEqual((await answerTo(engine, request(2))).tokenIds, answerOf([2], 10, 97));
  });

  it("after its end changes nothing, and its signal is not listened to any more", async () => {
    const { engine } = engineFixture();
    const controller = new AbortController();
    let listeners = 0;
    const { signal } = controller;
    const add = signal.addEventListener.bind(signal);
    const remove = signal.removeEventListener.bind(signal);
    signal.addEventListener = (...parameters: Parameters<typeof add>) => {
      listeners++;
      add(...parameters);
    };
    signal.removeEventListener = (...parameters: Parameters<typeof remove>) => {
      listeners--;
      remove(...parameters);
    };
    const answer = await answerTo(engine, request(1), { signal });
    assert.equal(listeners, 0);
    controller.abort();
    assert.equal(answer.finishReason, "length");
  });
});

describe("a failing rank", () => {
  watchUnhandledRejections();
  const failure = new RankError("RANK_DIED", "rank 1 died", { rank: 1 });

  it("ends every request in flight and every later one with its error", async () => {
    const { engine, executor } = engineFixture({ limits: { maxSequences: 2 } });
    executor.beforeStep = (step) => {
      if (step === 2) throw failure;
    };
    const outcomes = await Promise.allSettled([
      ...[1, 2, 3].map((id) => answerTo(engine, request(id))),
      engine.score([1, 2, 3]),
    ]);
    assert.deepEqual(
      outcomes.map((outcome) => (outcome.status === "rejected" ? outcome.reason : null)),
      [failure, failure, failure, failure],
    );
    assertIdle(engine);
    await assert.rejects(answerTo(engine, request(4)), failure);
    await assert.rejects(engine.score([1, 2]), failure);
    assert.equal(executor.history.length, 3, "no step is tried after a failure");
    await engine.close();
    await assert.rejects(answerTo(engine, request(4)), failure);
  });

  it("does not take away the tokens that came before", async () => {
    const { engine, executor } = engineFixture();
    executor.beforeStep = (step) => {
      if (step === 2) throw failure;
    };
    const tokenIds: number[] = [];
    await assert.rejects(async () => {
      for await (const delta of engine.generate(request(1))) tokenIds.push(...delta.tokenIds);
    }, failure);
    assert.deepEqual(tokenIds, answerOf([1], 2, 97));
  });

  it("that nobody is waiting for is told to the next who asks", async () => {
    const { engine, executor } = engineFixture();
    const answer = engine.generate(request(1));
    await answer.next();
    const failed = gate();
    executor.beforeStep = () => {
      failed.open();
      throw failure;
    };
    await failed.opened;
    await assert.rejects(async () => {
      for await (const _ of answer);
    }, failure);
  });

  it("with an error of no known class ends requests with an InternalError that holds it", async () => {
    const { engine, executor } = engineFixture();
    const cause = new TypeError("undefined is not a function");
    executor.beforeStep = () => Promise.reject(cause);
    await assert.rejects(answerTo(engine, request(1)), (error: unknown) => {
      assert.ok(error instanceof InternalError);
      assert.equal(error.cause, cause);
      return true;
    });
  });

  it("that computes no finite logits fails the request concerned, and only that", async () => {
    const notFinite = typedError(RankError, "NON_FINITE_LOGITS", /position 3 of the sequence .* NaN or infinity/);
    for (const spoil of ["id", "logprob"] as const) {
      const { engine, executor } = engineFixture();
      executor.afterStep = (step) => {
        const { resultIds, resultLogprobs } = executor.step.views;
        if (step !== 2) return;
        if (spoil === "id") resultIds[0] = -1;
        else resultLogprobs[0] = Number.NaN;
      };
      const sampling = { maxTokens: 6, logprobs: spoil === "id" ? undefined : 0 };
      const [spoilt, other] = await Promise.allSettled([
        answerTo(engine, { promptTokenIds: [1], sampling }),
        answerTo(engine, request(2)),
      ]);
      assert.ok(spoilt.status === "rejected" && notFinite(spoilt.reason));
      assert.ok(other.status === "fulfilled");
      assert.deepEqual(other.value.tokenIds, answerOf([2], 10, 97));
      assertIdle(engine);
    }
  });
});

describe("closing an engine", () => {
  watchUnhandledRejections();

  it("ends requests in flight, waiting ones and later ones, and closes the executor once", async () => {
    const { engine, executor } = engineFixture({ limits: { maxSequences: 1 } });
    const inStep = gate();
    const finishStep = gate();
    executor.beforeStep = (step) => {
      if (step !== 1) return;
      inStep.open();
      return finishStep.opened;
    };
    const requests = Promise.allSettled([
      answerTo(engine, request(1)),
      answerTo(engine, request(2)),
      engine.score([1, 2, 3]),
    ]);
    await inStep.opened;
    const closing = Promise.all([engine.close(), engine.close()]);
    for (const outcome of await requests) assert.ok(outcome.status === "rejected" && closed(outcome.reason));
    finishStep.open();
    await closing;
    await engine.close();
    assert.equal(executor.closed, 1);
    assertIdle(engine);
    await assert.rejects(answerTo(engine, request(3)), closed);
    await assert.rejects(engine.score([1, 2]), closed);
  });

  it("is not disturbed by the step in flight failing because of it", async () => {
    const { engine, executor } = engineFixture();
    const inStep = gate();
    const stopped = gate();
    executor.beforeStep = async () => {
      inStep.open();
      await stopped.opened;
      throw new RankError("RANK_STOPPED", "rank 0 was stopped");
    };
    const answer = answerTo(engine, request(1));
    await inStep.opened;
    const closing = engine.close();
    stopped.open();
    await assert.rejects(answer, closed);
    await closing;
    await assert.rejects(answerTo(engine, request(2)), closed);
  });

  it("is not needed for the process to end: an idle engine waits for nothing and runs no steps", async () => {
    const script = fileURLToPath(new URL("./idle-engine.js", import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [script], { timeout: 60_000 });
    assert.deepEqual(JSON.parse(stdout), { steps: 10, finishReason: "length" });
  });
});
