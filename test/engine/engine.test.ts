import assert from "node:assert/strict";
import fc from "fast-check";
import type { SamplingOptions } from "../../src/engine/sampling.js";
import { answerTo, deltasOf, engineFixture } from "./engine-fixture.js";
import { byteLevelTokenizer, spell } from "./tokenizer-fixtures.js";
import { answerOf, distributionAfter, GREEDY, likeliest, type ToySampling } from "./toy-model.js";

const VOCABULARY = 97;

/** The toy model's sampling of options without a default that matters. */
function toySampling(options: SamplingOptions): ToySampling {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, seed = 0 } = options;
  // What the step holds: single precision, and the bits of the seed.
  return {
    temperature: Math.fround(temperature),
    topK,
    topP: Math.fround(topP),
    minP: Math.fround(minP),
    seed: seed | 0,
  };
}

describe("an answer", () => {
  it("is the model's, whether the prompt takes one step or many", async () => {
    const promptTokenIds = [5, 7, 11, 13, 17, 19, 23, 29, 31];
    for (const maxTokens of [1, 2, 3, 4, 16]) {
      const { engine, executor } = engineFixture({ limits: { maxTokens } });
      const answer = await answerTo(engine, { promptTokenIds, sampling: { maxTokens: 12 } });
      assert.deepEqual(answer, {
        text: "",
        tokenIds: answerOf(promptTokenIds, 12, VOCABULARY),
        finishReason: "length",
      });
      assert.equal(executor.history.length, Math.ceil(promptTokenIds.length / maxTokens) + 11);
    }
  });

  it("is the same alone and among others, with any budget, few blocks and much preemption", async () => {
    const request = fc.record({
      promptTokenIds: fc.array(fc.nat(VOCABULARY - 1), { minLength: 1, maxLength: 25 }),
      maxTokens: fc.integer({ min: 1, max: 15 }),
      temperature: fc.constantFrom(0, 0.7),
      seed: fc.nat(2 ** 32 - 1),
    });
    const setting = fc.record({
      maxTokens: fc.integer({ min: 1, max: 24 }),
      maxSequences: fc.integer({ min: 1, max: 5 }),
      maxOutputs: fc.integer({ min: 1, max: 6 }),
      blockSize: fc.integer({ min: 1, max: 5 }),
      spareBlocks: fc.nat(5),
      stepsInFlight: fc.constantFrom(1, 2, 4),
    });
    let preemptions = 0;
    const property = fc.asyncProperty(
      fc.array(request, { minLength: 1, maxLength: 8 }),
      setting,
      async (requests, set) => {
        const longest = Math.max(...requests.map(({ promptTokenIds, maxTokens }) => promptTokenIds.length + maxTokens));
        const blocks = Math.ceil(longest / set.blockSize) + set.spareBlocks;
        const { engine } = engineFixture({
          blocks,
          blockSize: set.blockSize,
          stepsInFlight: set.stepsInFlight,
          limits: { ...set, maxBlocksPerSequence: 40 },
          // Steps take no time: as many are in flight as may be.
          engine: { now: () => 0 },
        });
        const answers = await Promise.all(
          requests.map(({ promptTokenIds, ...sampling }) => answerTo(engine, { promptTokenIds, sampling })),
        );
        for (const [i, { promptTokenIds, ...sampling }] of requests.entries()) {
          const expected = answerOf(promptTokenIds, sampling.maxTokens, VOCABULARY, toySampling(sampling));
          assert.deepEqual(answers[i]?.tokenIds, expected);
        }
        assert.equal(engine.stats.freeBlocks, blocks);
        preemptions += engine.stats.preemptions;
      },
    );
    await fc.assert(property, { numRuns: 150 });
    assert.ok(preemptions > 50, `only ${preemptions} preemptions were provoked`);
  });

  it("shares its steps with others that are in flight, and new ones join at any time", async () => {
    const { engine, executor } = engineFixture();
    const first = engine.generate({ promptTokenIds: [1], sampling: { maxTokens: 6 } });
    await first.next();
    const others = await Promise.all(
      [2, 3].map((id) => answerTo(engine, { promptTokenIds: [id], sampling: { maxTokens: 3 } })),
    );
    for await (const _ of first);
    assert.deepEqual(
      others.map(({ tokenIds }) => tokenIds),
      [answerOf([2], 3, VOCABULARY), answerOf([3], 3, VOCABULARY)],
    );
    assert.ok(executor.history.some(({ sequences }) => sequences === 3));
    assert.ok(executor.history.length < 12, "three answers one after another would take 12 steps");
  });

  it("fills the context and no more when maxTokens is left out or too large", async () => {
    const { engine } = engineFixture({ maxModelLength: 20 });
    for (const sampling of [{}, { maxTokens: 1000 }]) {
      const answer = await answerTo(engine, { promptTokenIds: [1, 2, 3], sampling });
      assert.deepEqual([answer.tokenIds.length, answer.finishReason], [17, "length"]);
    }
    assert.equal((await answerTo(engine, { promptTokenIds: Array.from({ length: 19 }, () => 1) })).tokenIds.length, 1);
  });

  it("fits into a KV cache smaller than the model's context", async () => {
    const { engine } = engineFixture({ blocks: 3, blockSize: 4, maxModelLength: 64 });
    assert.equal(engine.contextLength, 12);
    assert.equal((await answerTo(engine, { promptTokenIds: [1, 2, 3] })).tokenIds.length, 9);
  });

  it("ends with the model's end-of-sequence token, or a stop token, unless told to go on", async () => {
    const promptTokenIds = [3, 1];
    const free = answerOf(promptTokenIds, 10, VOCABULARY);
    const endOfSequence = free[4] ?? 0;
    const { engine } = engineFixture({ endOfSequenceIds: [endOfSequence] });
    const end = free.indexOf(endOfSequence) + 1;
    const answer = (sampling: SamplingOptions) =>
      answerTo(engine, { promptTokenIds, sampling: { maxTokens: 10, ...sampling } });
    assert.deepEqual(await answer({}), { text: "", tokenIds: free.slice(0, end), finishReason: "stop" });
    assert.deepEqual(await answer({ ignoreEndOfSequence: true }), { text: "", tokenIds: free, finishReason: "length" });
    const stopped = await answer({ stopTokenIds: [free[1] ?? 0] });
    assert.deepEqual([stopped.tokenIds, stopped.finishReason], [free.slice(0, 2), "stop"]);
  });

  it("reports log-probabilities of its tokens and of the likeliest ones, best first", async () => {
    const { engine } = engineFixture();
    const promptTokenIds = [8, 9];
    const sampling = { maxTokens: 4, temperature: 1, seed: 3, logprobs: 2 };
    const deltas = await deltasOf(engine, { promptTokenIds, sampling });
    const tokenIds = deltas.flatMap((delta) => delta.tokenIds);
    const logprobs = deltas.flatMap((delta) => delta.logprobs ?? assert.fail());
    assert.deepEqual(tokenIds, answerOf(promptTokenIds, 4, VOCABULARY, toySampling(sampling)));
    assert.equal(logprobs.length, 4);
    for (const [i, entry] of logprobs.entries()) {
      const expected = distributionAfter([...promptTokenIds, ...tokenIds.slice(0, i)], VOCABULARY);
      assert.equal(entry.id, tokenIds[i]);
      assert.equal(entry.logprob, Math.fround(expected[entry.id] ?? 0));
      const top = likeliest(expected, 2).map(({ id, logprob }) => ({ id, logprob: Math.fround(logprob) }));
      assert.deepEqual(entry.top, top);
    }
    const chosenOnly = await deltasOf(engine, { promptTokenIds, sampling: { maxTokens: 1, logprobs: 0 } });
    assert.deepEqual(
      chosenOnly[0]?.logprobs?.map(({ top }) => top),
      [[]],
    );
    const none = await deltasOf(engine, { promptTokenIds, sampling: { maxTokens: 1 } });
    assert.ok(!none.some((delta) => "logprobs" in delta));
  });

  it("can be drawn again with the seed that its first delta reports", async () => {
    const { engine } = engineFixture();
    const promptTokenIds = [4];
    const draw = (seed?: number) =>
      deltasOf(engine, { promptTokenIds, sampling: { maxTokens: 8, temperature: 1, seed } });
    const first = await draw();
    const seed = first[0]?.seed ?? assert.fail("a seed is reported");
    assert.ok(!first.slice(1).some((delta) => "seed" in delta));
    const tokensOf = (deltas: typeof first): number[] => deltas.flatMap(({ tokenIds }) => tokenIds);
    assert.deepEqual(tokensOf(await draw(seed)), tokensOf(first));
    assert.notEqual((await draw())[0]?.seed, seed);
    const greedy = await deltasOf(engine, { promptTokenIds, sampling: { maxTokens: 1 } });
    assert.ok(!("seed" in (greedy[0] ?? {})));
  });

  it("comes with the prompt in its first delta and timings in its last", async () => {
    let clock = 1000;
    const { engine, executor } = engineFixture({ engine: { now: () => clock }, limits: { maxTokens: 2 } });
    executor.beforeStep = () => {
      clock += 10;
    };
    const deltas = await deltasOf(engine, { promptTokenIds: [1, 2, 3], sampling: { maxTokens: 4 } });
    assert.deepEqual(deltas[0]?.promptTokenIds, [1, 2, 3]);
    assert.ok(!deltas.slice(1).some((delta) => "promptTokenIds" in delta));
    assert.ok(!deltas.slice(0, -1).some((delta) => "timings" in delta || delta.finishReason !== null));
    assert.deepEqual(deltas.at(-1)?.timings, { ttftMs: 20, tpotMs: 10, totalMs: 50 });
    const single = await deltasOf(engine, { promptTokenIds: [1], sampling: { maxTokens: 1 } });
    assert.deepEqual(single.at(-1)?.timings, { ttftMs: 10, tpotMs: null, totalMs: 10 });
  });

  it("reaches a slow consumer in fewer, larger pieces, and nobody waits for it", async () => {
    const { engine } = engineFixture();
    const slow = engine.generate({ promptTokenIds: [1], sampling: { maxTokens: 20, logprobs: 1 } });
    const first = await slow.next();
    assert.deepEqual(first.value?.tokenIds.length, 1);
    await answerTo(engine, { promptTokenIds: [2], sampling: { maxTokens: 30 } });
    const second = await slow.next();
    assert.ok(second.value !== undefined);
    assert.deepEqual(second.value.tokenIds, answerOf([1], 20, VOCABULARY).slice(1));
    assert.deepEqual([second.value.logprobs?.length, second.value.finishReason], [19, "length"]);
    assert.equal((await slow.next()).done, true);
  });

  it("does not depend on the sampling numbers of others in the step", async () => {
    const { engine } = engineFixture({ limits: { maxSequences: 4, maxOutputs: 4 } });
    const samplings: SamplingOptions[] = [
      {},
      { temperature: 0.5, topK: 5, seed: 1 },
      { temperature: 1.5, topP: 0.9, minP: 0.1, seed: 2 ** 32 - 1 },
    ];
    const answers = await Promise.all(
      samplings.map((sampling) => answerTo(engine, { promptTokenIds: [6], sampling: { maxTokens: 9, ...sampling } })),
    );
    assert.deepEqual(
      answers.map(({ tokenIds }) => tokenIds),
      samplings.map((sampling) => answerOf([6], 9, VOCABULARY, toySampling(sampling))),
    );
    assert.deepEqual(answers[0]?.tokenIds, answerOf([6], 9, VOCABULARY, GREEDY));
  });
});

describe("the text of an answer", () => {
  const fixture = byteLevelTokenizer();
  const script = ["hello", " world", "ing", "...", " the"].map((word) => fixture.id(spell(word)));

  /** An engine whose model says these tokens, whatever it is asked. */
  function scripted(tokens: readonly number[]) {
    const { engine, executor } = engineFixture({ tokenizer: fixture });
    let said = 0;
    executor.afterStep = () => {
      const { resultIds } = executor.step.views;
      resultIds[0] = tokens[said++ % tokens.length] ?? 0;
    };
    return engine;
  }

  it("streams with its tokens", async () => {
    const deltas = await deltasOf(scripted(script), { prompt: "a", sampling: { maxTokens: 4 } });
    assert.deepEqual(
      deltas.map(({ text }) => text),
      ["hello", " world", "ing", "..."],
    );
    assert.deepEqual(deltas[0]?.promptTokenIds, [fixture.id("a")]);
  });

  it("ends before a stop text that spans tokens, of which nothing was shown", async () => {
    const stop = ["dingo", "ding.."];
    const deltas = await deltasOf(scripted(script), { prompt: "a", sampling: { stop } });
    assert.deepEqual(
      deltas.map(({ text, finishReason }) => [text, finishReason]),
      [
        ["hello", null],
        [" worl", null],
        ["", null],
        ["", "stop"],
      ],
    );
    const included = await answerTo(scripted(script), { prompt: "a", sampling: { stop, includeStopString: true } });
    assert.equal(included.text, "hello worlding..");
  });

  it("shows what was held back for a stop text when the answer ends otherwise", async () => {
    const answer = await answerTo(scripted(script), { prompt: "a", sampling: { stop: "dingo", maxTokens: 3 } });
    assert.deepEqual([answer.text, answer.finishReason], ["hello worlding", "length"]);
  });

  it("leaves out the token that ended it, and special tokens, unless they are asked for", async () => {
    const tokens = [fixture.id("<|im_start|>"), ...script.slice(0, 2), fixture.id("<|im_end|>")];
    const answer = (sampling: SamplingOptions) => answerTo(scripted(tokens), { prompt: "a", sampling });
    // The tokenizer's eos_token ends an answer though the model's config.json names none.
    assert.deepEqual(await answer({}), { text: "hello world", tokenIds: tokens, finishReason: "stop" });
    assert.equal((await answer({ skipSpecialTokens: false })).text, "<|im_start|>hello world");
    const all = await answer({ skipSpecialTokens: false, includeStopString: true });
    assert.equal(all.text, "<|im_start|>hello world<|im_end|>");
    const word = await answer({ stopTokenIds: [fixture.id(spell(" world"))] });
    assert.deepEqual([word.text, word.tokenIds], ["hello", tokens.slice(0, 3)]);
  });

  it("never breaks a character, and shows a broken one as such at the end", async () => {
    const tokens = [[0xf0, 0x9f], [0x98], [0x80], [0xe4, 0xbd]].map((bytes) => fixture.id(spell(bytes)));
    const deltas = await deltasOf(scripted(tokens), { prompt: "a", sampling: { maxTokens: 4 } });
    assert.deepEqual(
      deltas.map(({ text }) => text),
      ["", "", "\u{1f600}", "\ufffd"],
    );
  });
});
