import assert from "node:assert/strict";
import { OptionError, RankError, RequestError } from "../../src/core/errors.js";
import { answerTo, engineFixture } from "./engine-fixture.js";
import { typedError } from "./errors.js";
import { answerOf, distributionAfter } from "./toy-model.js";

const VOCABULARY = 97;
const text = Array.from({ length: 40 }, (_, i) => (i * i + 3) % VOCABULARY);

/** Negative log-likelihoods by the toy model, in the precision of the step. */
const expectedNll = (tokens: readonly number[]): number[] =>
  tokens.slice(1).map((id, i) => -Math.fround(distributionAfter(tokens.slice(0, i + 1), VOCABULARY)[id] ?? 0));

describe("scoring a text", () => {
  it("gives the negative log-likelihood of every token but the first, in chunks of any size", async () => {
    const expected = expectedNll(text);
    for (const limits of [{ maxOutputs: 1 }, { maxOutputs: 3, maxTokens: 2 }, { maxOutputs: 64, maxTokens: 64 }]) {
      const { engine } = engineFixture({ limits });
      const score = await engine.score(text);
      assert.equal(score.tokens, 40);
      assert.deepEqual([...score.nll], expected);
      const sum = expected.reduce((total, nll) => total + nll, 0);
      assert.ok(Math.abs(score.nllMean - sum / 39) < 1e-12);
      assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
    }
  });

  for (const stepsInFlight of [1, 2, 4]) {
    it(`works beside requests that generate, also when it is preempted by them, ${stepsInFlight} step(s) in flight`, async () => {
      await checkBesideOthers(stepsInFlight);
    });
  }

  async function checkBesideOthers(stepsInFlight: number): Promise<void> {
    const limits = { maxOutputs: 2, maxTokens: 8 };
    const { engine } = engineFixture({ blocks: 16, blockSize: 4, limits, stepsInFlight, engine: { now: () => 0 } });
    const [answer, score] = await Promise.all([
      answerTo(engine, { promptTokenIds: [1, 2], sampling: { maxTokens: 40 } }),
      engine.score(text),
    ]);
    assert.deepEqual(answer.tokenIds, answerOf([1, 2], 40, VOCABULARY));
    assert.deepEqual([...score.nll], expectedNll(text));
    assert.ok(engine.stats.preemptions > 0, "the case was not provoked");
  }

  it("takes a text as long as the context, and no longer", async () => {
    const { engine } = engineFixture({ maxModelLength: 40 });
    assert.equal((await engine.score(text)).nll.length, 39);
    const error = typedError(RequestError, "PROMPT_TOO_LONG", /at most 40 tokens, .* but received 41/);
    await assert.rejects(engine.score([...text, 1]), error);
  });

  it("needs two tokens at least, that the model knows", async () => {
    const { engine, executor } = engineFixture();
    await assert.rejects(engine.score([]), typedError(OptionError, "EMPTY_PROMPT", /tokenIds/));
    await assert.rejects(engine.score([1]), typedError(OptionError, "EMPTY_PROMPT", /at least 2 token ids/));
    const unknown = typedError(OptionError, "INVALID_TOKEN_ID", /tokenIds\[1\] to be a token id from 0 to 96/);
    await assert.rejects(engine.score([1, VOCABULARY]), unknown);
    assert.equal(executor.history.length, 0);
  });

  it("can be given up", async () => {
    const { engine, executor } = engineFixture({ limits: { maxOutputs: 1 } });
    const controller = new AbortController();
    executor.beforeStep = (step) => {
      if (step === 3) controller.abort();
    };
    const aborted = typedError(RequestError, "REQUEST_ABORTED", /aborted/);
    await assert.rejects(engine.score(text, { signal: controller.signal }), aborted);
    await assert.rejects(engine.score(text, { signal: controller.signal }), aborted);
    assert.deepEqual([engine.stats.running, engine.stats.freeBlocks], [0, engine.stats.blocks]);
  });

  it("fails when a log-probability is not finite", async () => {
    for (const value of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const { engine, executor } = engineFixture();
      executor.afterStep = () => {
        executor.step.views.resultLogprobs[1] = value;
      };
      await assert.rejects(engine.score(text), typedError(RankError, "NON_FINITE_LOGITS", /position 1/));
      assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
    }
  });
});
