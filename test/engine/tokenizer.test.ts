import assert from "node:assert/strict";
import { CheckpointError, RequestError } from "../../src/core/errors.js";
import type { JsonObject } from "../../src/core/json.js";
import { packStrings } from "../../src/core/packed-strings.js";
import { endOfSequenceIdsOf } from "../../src/engine/end-of-sequence.js";
import { MAX_TEXT_LENGTH, Tokenizer } from "../../src/engine/tokenizer.js";
import { typedError } from "./errors.js";
import { byteFallbackTokenizer, byteLevelTokenizer, spell, type TokenizerFixture } from "./tokenizer-fixtures.js";

const tokenizerOf = ({ tokenizer, config, size }: TokenizerFixture): Tokenizer =>
  new Tokenizer({ tokenizer, config }, size);

/** The byte-level fixture with some sections replaced. */
const damaged = (sections: JsonObject, config: JsonObject = {}): (() => Tokenizer) => {
  const fixture = byteLevelTokenizer();
  const files = { tokenizer: { ...fixture.tokenizer, ...sections }, config: { ...fixture.config, ...config } };
  return () => new Tokenizer(files, fixture.size);
};

describe("the tokenizer", () => {
  it("merges bytes, recognizes special tokens in a text, and gives the text back", () => {
    const fixture = byteLevelTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const text = "hello world\u{1f600}<|im_end|>\u00e9";
    const ids = tokenizer.encode(text, { addSpecialTokens: true });
    const [e, acute] = [fixture.id(spell([0xc3])), fixture.id(spell([0xa9]))];
    const words = [spell("hello"), spell(" world"), spell("\u{1f600}"), "<|im_end|>"].map(fixture.id);
    assert.deepEqual(ids, [...words, e, acute]);
    assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), text);
    assert.equal(tokenizer.decode(ids), text.replace("<|im_end|>", ""));
    assert.equal(tokenizer.decode([]), "");
  });

  it("adds what the tokenizer puts around a text only if asked to", () => {
    const fixture = byteFallbackTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const words = ["\u2581hello", "\u2581world"].map(fixture.id);
    assert.deepEqual(tokenizer.encode("hello world", { addSpecialTokens: true }), [1, ...words]);
    assert.deepEqual(tokenizer.encode("hello world", { addSpecialTokens: false }), words);
  });

  it("leaves spaces before punctuation alone, though tokenizer_config.json asks to clean them up", () => {
    const tokenizer = tokenizerOf(byteLevelTokenizer());
    assert.equal(tokenizer.decode(tokenizer.encode("a . b ?", { addSpecialTokens: false })), "a . b ?");
  });

  it("knows special tokens by name, whether they are texts or objects", () => {
    const fixture = byteLevelTokenizer();
    const tokenizer = tokenizerOf(fixture);
    assert.deepEqual(
      [...tokenizer.specialTokens],
      [
        ["bos_token", "<|im_start|>"],
        ["eos_token", "<|im_end|>"],
      ],
    );
    assert.deepEqual(tokenizer.specialIds, new Set(["<|im_start|>", "<|im_end|>"].map(fixture.id)));
  });

  it("refuses a text that is too long to tokenize before trying", () => {
    const tokenizer = tokenizerOf(byteLevelTokenizer());
    assert.throws(
      () => tokenizer.encode("a".repeat(MAX_TEXT_LENGTH + 1), { addSpecialTokens: false }),
      typedError(RequestError, "PROMPT_TOO_LONG", /at most 16777216 UTF-16 units but received 16777217/),
    );
  });

  it("gives no id that the model's vocabulary does not have", () => {
    const { tokenizer, config, size } = byteLevelTokenizer();
    const small = new Tokenizer({ tokenizer, config }, size - 1);
    assert.throws(
      () => small.encode("<tool>", { addSpecialTokens: false }),
      typedError(CheckpointError, "INVALID_TOKENIZER", /ids below \d+, .* but received \d+ for "<tool>"/),
    );
  });

  const cases: [string, JsonObject, RegExp][] = [
    ["without a model", { model: null }, /tokenizer's model: expected an object but received null/],
    ["of an unknown model", { model: { type: "Magic", vocab: null } }, /model.vocab: expected an object or an array/],
    ["without a vocabulary", { model: { type: "BPE", merges: [] } }, /model.vocab: expected an object or an array/],
    ["with a text for an id", { model: { type: "BPE", vocab: { a: "1" }, merges: [] } }, /model.vocab\["a"\]: .* "1"/],
    ["with a negative id", { model: { type: "BPE", vocab: { a: -1 }, merges: [] } }, /a token id from 0 .* -1/],
    ["with an id beyond any vocabulary", { model: { type: "BPE", vocab: { a: 1e9 }, merges: [] } }, /1000000000/],
    [
      "without merges",
      { model: { type: "BPE", vocab: { a: 0 } } },
      /model.merges: expected an array but received undef/,
    ],
    [
      "with merges that are numbers",
      { model: { type: "BPE", vocab: { a: 0 }, merges: [1] } },
      /merges: expected pairs/,
    ],
    ["with a score missing", { model: { type: "Unigram", vocab: [["a"]] } }, /pairs of a token and its score/],
    ["with an unknown decoder", { decoder: { type: "Magic" } }, /Unknown Decoder type: Magic/],
    ["with a decoder that is a text", { decoder: "ByteLevel" }, /decoder: expected an object or null/],
    ["with a broken regular expression", { pre_tokenizer: { type: "Split", pattern: { Regex: "(" } } }, /describes a/],
    ["with added tokens that are no array", { added_tokens: {} }, /added_tokens: expected an array/],
    ["with an added token without text", { added_tokens: [{ id: 1 }] }, /added_tokens\[0\].content: expected a text/],
    [
      "with an added token without id",
      { added_tokens: [{ content: "a" }] },
      /added_tokens\[0\].id: expected a token id/,
    ],
  ];
  for (const [name, sections, message] of cases)
    it(`refuses a tokenizer.json ${name}`, () => {
      assert.throws(damaged(sections), typedError(CheckpointError, "INVALID_TOKENIZER", message));
    });

  it("refuses a packed vocabulary that has a token twice", () => {
    const { tokenizer, config } = byteLevelTokenizer();
    const vocabulary = { tokens: packStrings(["a", "bc", "", "bc"]), merges: packStrings([]) };
    assert.throws(
      () => new Tokenizer({ tokenizer, config, vocabulary }, 4),
      typedError(
        CheckpointError,
        "INVALID_TOKENIZER",
        /model.vocab: expected different tokens, .* 1 again .* "bc as 3"/,
      ),
    );
  });

  it("refuses a tokenizer_config.json whose special tokens are no texts", () => {
    const error = (message: RegExp) => typedError(CheckpointError, "INVALID_TOKENIZER", message);
    assert.throws(damaged({}, { eos_token: 2 }), error(/eos_token: expected a text, or an object/));
    assert.throws(
      damaged({}, { additional_special_tokens: "x" }),
      error(/additional_special_tokens: expected an array/),
    );
  });

  it("takes sections that are left out as absent", () => {
    const { model, decoder, pre_tokenizer } = byteLevelTokenizer().tokenizer;
    assert.ok(model !== undefined && decoder !== undefined && pre_tokenizer !== undefined);
    const tokenizer = new Tokenizer({ tokenizer: { model, decoder, pre_tokenizer }, config: {} }, 1000);
    assert.equal(tokenizer.decode(tokenizer.encode("hello", { addSpecialTokens: true })), "hello");
  });
});

describe("the end of a sequence", () => {
  const tokenizer = tokenizerOf(byteLevelTokenizer());
  const turnEnd = byteLevelTokenizer().id("<|im_end|>");

  it("is what any of config.json, generation_config.json and the tokenizer calls it", () => {
    assert.deepEqual(endOfSequenceIdsOf([1], null, null), [1]);
    assert.deepEqual(endOfSequenceIdsOf([1], { eos_token_id: 3 }, null), [1, 3]);
    assert.deepEqual(endOfSequenceIdsOf([1], { eos_token_id: [3, 1] }, tokenizer), [1, 3, turnEnd]);
    assert.deepEqual(endOfSequenceIdsOf([], { eos_token_id: null }, tokenizer), [turnEnd]);
  });

  it("is refused when generation_config.json holds no token ids", () => {
    for (const value of ["2", [2, null], -1, 1.5]) {
      assert.throws(
        () => endOfSequenceIdsOf([], { eos_token_id: value }, null),
        typedError(CheckpointError, "INVALID_GENERATION_CONFIG", /expected eos_token_id to be a token id/),
      );
    }
  });
});
