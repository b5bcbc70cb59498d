import assert from "node:assert/strict";
import { OptionError } from "../../src/core/errors.js";
import { resolveSampling, type SamplingLimits, type SamplingOptions } from "../../src/engine/sampling.js";
import { typedError } from "./errors.js";

const limits: SamplingLimits = {
  vocabularySize: 100,
  maxLogprobs: 20,
  room: 50,
  endOfSequenceIds: [2, 7],
  hasTokenizer: true,
  drawSeed: () => 1234,
};

const resolve = (options: SamplingOptions, over: Partial<SamplingLimits> = {}) =>
  resolveSampling(options, { ...limits, ...over });

describe("sampling options", () => {
  it("are greedy by default, fill the context and stop at the model's end-of-sequence tokens", () => {
    assert.deepEqual(resolve({}), {
      maxTokens: 50,
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      seed: 0,
      stop: [],
      endTokenIds: new Set([2, 7]),
      logprobs: -1,
      includeStopString: false,
      skipSpecialTokens: true,
    });
  });

  it("left undefined mean the same as left out", () => {
    const names = ["maxTokens", "temperature", "topK", "topP", "minP", "seed", "stop", "stopTokenIds", "logprobs"];
    assert.deepEqual(resolve(Object.fromEntries(names.map((name) => [name, undefined]))), resolve({}));
  });

  it("clip maxTokens to the room the context has left", () => {
    assert.equal(resolve({ maxTokens: 49 }).maxTokens, 49);
    assert.equal(resolve({ maxTokens: 51 }).maxTokens, 50);
  });

  it("draw a seed once when tokens are drawn and none is given, and keep one that is given", () => {
    assert.equal(resolve({ temperature: 0.5 }).seed, 1234);
    assert.equal(resolve({ temperature: 0.5, seed: 0 }).seed, 0);
    assert.equal(resolve({ temperature: 0.5, seed: 2 ** 32 - 1 }).seed, 2 ** 32 - 1);
    assert.equal(resolve({ seed: 5 }, { drawSeed: () => assert.fail("greedy draws nothing") }).seed, 0);
  });

  it("take a top-k of the whole vocabulary or more as no limit", () => {
    assert.equal(resolve({ topK: 99 }).topK, 99);
    assert.equal(resolve({ topK: 100 }).topK, 0);
  });

  it("ask for no more alternatives than there are tokens", () => {
    assert.equal(resolve({ logprobs: 20 }, { vocabularySize: 8 }).logprobs, 8);
    assert.equal(resolve({ logprobs: 0 }).logprobs, 0);
  });

  it("add stop token ids to the model's, or replace them when the end of sequence is ignored", () => {
    assert.deepEqual(resolve({ stopTokenIds: [9, 2] }).endTokenIds, new Set([2, 7, 9]));
    assert.deepEqual(resolve({ stopTokenIds: [9], ignoreEndOfSequence: true }).endTokenIds, new Set([9]));
  });

  it("take one stop text or several, each once", () => {
    assert.deepEqual(resolve({ stop: "a" }).stop, ["a"]);
    assert.deepEqual(resolve({ stop: ["a", "b", "a"] }).stop, ["a", "b"]);
    assert.deepEqual(resolve({ stop: [] }, { hasTokenizer: false }).stop, []);
  });

  const wrong: [keyof SamplingOptions, unknown, RegExp][] = [
    ["maxTokens", 0, /maxTokens to be a whole number from 1 to 2147483647 but received 0 of type number/],
    ["maxTokens", 1.5, /received 1.5/],
    ["maxTokens", "5", /received "5" of type string/],
    ["temperature", -0.1, /temperature to be a number 0 to 100 but received -0.1/],
    ["temperature", Number.NaN, /received NaN/],
    ["temperature", 101, /received 101/],
    ["topK", -1, /topK to be a whole number from 0/],
    ["topP", 0, /topP to be a number above 0 and at most 1/],
    // Would be 0 in the single precision of the step.
    ["topP", 1e-60, /received 1e-60/],
    ["topP", 1.01, /received 1.01/],
    ["minP", 1.01, /minP to be a number 0 to 1/],
    ["minP", null, /received null/],
    ["seed", -1, /seed to be a whole number from 0 to 4294967295/],
    ["seed", 2 ** 32, /received 4294967296/],
    ["stop", "", /stop to be texts of 1 to 1024/],
    ["stop", ["a", 1], /stop to be a text, or an array of texts but received 1 of type number/],
    ["stop", "x".repeat(1025), /1 to 1024/],
    ["stop", "\ud83d", /without lone surrogates/],
    ["stop", Array.from({ length: 17 }, (_, i) => `${i}`), /at most 16 texts but received an array of 17/],
    ["stopTokenIds", 5, /stopTokenIds to be an array/],
    ["stopTokenIds", [100], /token ids from 0 to 99 but received 100/],
    ["stopTokenIds", [-1], /received -1/],
    ["stopTokenIds", Array.from({ length: 257 }, () => 1), /at most 256 ids/],
    ["ignoreEndOfSequence", 1, /ignoreEndOfSequence to be true or false/],
    ["includeStopString", "yes", /includeStopString to be true or false/],
    ["skipSpecialTokens", null, /skipSpecialTokens to be true or false/],
    ["logprobs", 21, /logprobs to be a whole number from 0 to 20/],
    ["logprobs", true, /received true of type boolean/],
  ];
  for (const [option, value, message] of wrong) {
    it(`refuse ${option} ${JSON.stringify(value)?.slice(0, 40)}, naming what was expected and received`, () => {
      const error = typedError(OptionError, "INVALID_SAMPLING_OPTION", message);
      assert.throws(() => resolve({ [option]: value }), error);
      assert.throws(
        () => resolve({ [option]: value }),
        (thrown: unknown) => thrown instanceof OptionError && thrown.details.option === option,
      );
    });
  }

  it("refuse a stop text where there is no text", () => {
    const error = typedError(OptionError, "INVALID_SAMPLING_OPTION", /no tokenizer/);
    assert.throws(() => resolve({ stop: "a" }, { hasTokenizer: false }), error);
  });

  it("refuse names that do not exist instead of ignoring them", () => {
    const misspelt = { temperature: 1, max_tokens: 5 };
    assert.throws(
      () => resolve(misspelt),
      typedError(OptionError, "INVALID_SAMPLING_OPTION", /among maxTokens, .* but received "max_tokens"/),
    );
  });
});
