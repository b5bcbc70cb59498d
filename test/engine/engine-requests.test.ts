import assert from "node:assert/strict";
import { CheckpointError, OptionError, RequestError, UnsupportedError } from "../../src/core/errors.js";
import type { Engine } from "../../src/engine/engine.js";
import type { GenerationRequest } from "../../src/engine/generation.js";
import { answerTo, deltasOf, engineFixture, gate } from "./engine-fixture.js";
import { typedError } from "./errors.js";
import { byteFallbackTokenizer, byteLevelTokenizer, spell } from "./tokenizer-fixtures.js";

/** Asks as a JavaScript caller might, without the types. */
const ask = (engine: Engine, request: unknown): Promise<unknown> =>
  (async () => {
    const deltas: AsyncIterable<unknown> = Reflect.apply(engine.generate, engine, [request]);
    for await (const _ of deltas);
  })();

const ones = (length: number): number[] => Array.from({ length }, () => 1);

describe("a request", () => {
  it("has exactly one prompt", async () => {
    const { engine } = engineFixture({ tokenizer: byteLevelTokenizer() });
    const error = (message: RegExp) => typedError(OptionError, "INVALID_PROMPT", message);
    await assert.rejects(ask(engine, {}), error(/exactly one of prompt, promptTokenIds, messages but received none/));
    await assert.rejects(ask(engine, { prompt: "a", messages: [] }), error(/received prompt and messages/));
    await assert.rejects(ask(engine, null), error(/a request object but received null/));
    await assert.rejects(ask(engine, { prompt: 5 }), error(/prompt to be a text but received 5 of type number/));
  });

  it("has token ids that the model knows", async () => {
    const { engine } = engineFixture({ vocabularySize: 97 });
    const error = (message: RegExp) => typedError(OptionError, "INVALID_TOKEN_ID", message);
    const expected = /promptTokenIds\[1\] to be a token id from 0 to 96 but received/;
    for (const id of [-1, 97, 1.5, "1", null, Number.NaN]) {
      await assert.rejects(ask(engine, { promptTokenIds: [0, id] }), error(expected));
    }
    await assert.rejects(ask(engine, { promptTokenIds: Array(3) }), error(/\[0\] .* received undefined/));
    await assert.rejects(ask(engine, { promptTokenIds: "1,2" }), error(/an array of token ids but received "1,2"/));
  });

  it("has at least one token", async () => {
    const { engine } = engineFixture({ tokenizer: byteLevelTokenizer() });
    const empty = typedError(OptionError, "EMPTY_PROMPT", /at least one token but received none/);
    await assert.rejects(ask(engine, { promptTokenIds: [] }), empty);
    await assert.rejects(ask(engine, { prompt: "" }), empty);
    // A tokenizer that adds a beginning-of-sequence token makes a prompt of no text.
    const { engine: other } = engineFixture({ tokenizer: byteFallbackTokenizer() });
    const [first] = await deltasOf(other, { prompt: "", sampling: { maxTokens: 1 } });
    assert.equal(first?.promptTokenIds?.[0], 1);
  });

  it("leaves room in the context for at least one token of answer", async () => {
    const { engine, executor } = engineFixture({ maxModelLength: 20 });
    await assert.rejects(ask(engine, { promptTokenIds: ones(20) }), (error: unknown) => {
      assert.ok(error instanceof RequestError);
      assert.deepEqual([error.code, error.details.expected, error.details.received], ["PROMPT_TOO_LONG", 19, 20]);
      assert.match(error.message, /at most 19 tokens, as the context holds 20, but received 20/);
      return true;
    });
    assert.equal(executor.history.length, 0);
    assert.equal((await answerTo(engine, { promptTokenIds: ones(19) })).tokenIds.length, 1);
  });

  it("fits into the KV cache, however long the model's context is", async () => {
    const { engine } = engineFixture({ blocks: 2, blockSize: 4, maxModelLength: 64 });
    const error = typedError(RequestError, "PROMPT_TOO_LONG", /at most 7 tokens/);
    await assert.rejects(ask(engine, { promptTokenIds: ones(8) }), error);
  });

  it("has sampling options that are checked before anything runs", async () => {
    const { engine, executor } = engineFixture();
    const error = (message: RegExp) => typedError(OptionError, "INVALID_SAMPLING_OPTION", message);
    const withSampling = (sampling: unknown): unknown => ({ promptTokenIds: [1], sampling });
    await assert.rejects(ask(engine, withSampling({ temperature: -1 })), error(/temperature/));
    await assert.rejects(ask(engine, withSampling({ logprobs: 6 })), error(/logprobs .* 0 to 5/));
    await assert.rejects(ask(engine, withSampling(5)), error(/sampling to be an object but received 5/));
    assert.equal(executor.history.length, 0);
  });

  it("needs a tokenizer for text, and a chat template for messages", async () => {
    const { engine: bare } = engineFixture();
    const messages = [{ role: "user", content: "hello" }];
    const noTokenizer = typedError(UnsupportedError, "NO_TOKENIZER", /promptTokenIds/);
    await assert.rejects(ask(bare, { prompt: "hello" }), noTokenizer);
    await assert.rejects(ask(bare, { messages }), noTokenizer);
    const { engine } = engineFixture({ tokenizer: byteLevelTokenizer() });
    await assert.rejects(
      ask(engine, { messages }),
      typedError(UnsupportedError, "NO_CHAT_TEMPLATE", /no chat template/),
    );
  });

  it("with messages is written by the chat template, and no special tokens are added around it", async () => {
    const tokenizer = byteFallbackTokenizer();
    const chatTemplate = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    const { engine } = engineFixture({ tokenizer, chatTemplate });
    const request: GenerationRequest = { messages: [{ role: "user", content: "hello" }], sampling: { maxTokens: 1 } };
    const [delta] = await deltasOf(engine, request);
    assert.deepEqual(delta?.promptTokenIds, [1, tokenizer.id("\u2581hello"), 2]);
    const [text] = await deltasOf(engine, { prompt: "hello", sampling: { maxTokens: 1 } });
    assert.deepEqual(text?.promptTokenIds, [1, tokenizer.id("\u2581hello")]);
  });

  it("with messages fails on a broken chat template, which does not keep others from being served", async () => {
    const { engine } = engineFixture({ tokenizer: byteLevelTokenizer(), chatTemplate: "{% if %}" });
    const broken = typedError(CheckpointError, "INVALID_CHAT_TEMPLATE");
    await assert.rejects(ask(engine, { messages: [{ role: "user", content: "hello" }] }), broken);
    const [delta] = await deltasOf(engine, { prompt: "hello", sampling: { maxTokens: 1 } });
    assert.deepEqual(delta?.promptTokenIds, [byteLevelTokenizer().id(spell("hello"))]);
  });

  it("is refused when too many wait already", async () => {
    const { engine, executor } = engineFixture({ limits: { maxSequences: 1 }, engine: { maxQueuedRequests: 2 } });
    const inStep = gate();
    const finishStep = gate();
    executor.beforeStep = async () => {
      inStep.open();
      await finishStep.opened;
    };
    const request: GenerationRequest = { promptTokenIds: [1], sampling: { maxTokens: 1 } };
    const first = answerTo(engine, request);
    await inStep.opened;
    const waiting = [answerTo(engine, request), answerTo(engine, request)];
    await assert.rejects(ask(engine, request), typedError(RequestError, "QUEUE_FULL", /at most 2 requests waiting/));
    finishStep.open();
    for (const answer of await Promise.all([first, ...waiting])) assert.equal(answer.finishReason, "length");
    assert.equal((await answerTo(engine, request)).finishReason, "length");
  });

  it("cannot be made of an engine whose queue has no size", () => {
    const error = typedError(OptionError, "INVALID_OPTION", /maxQueuedRequests .* at least 1 but received 0/);
    assert.throws(() => engineFixture({ engine: { maxQueuedRequests: 0 } }), error);
  });
});
