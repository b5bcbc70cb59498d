import assert from "node:assert/strict";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import fc from "fast-check";
import { WindowDetokenizer } from "../../src/engine/detokenizer.js";
import { Tokenizer } from "../../src/engine/tokenizer.js";
import {
  byteFallbackTokenizer,
  byteLevelTokenizer,
  metaspaceTokenizer,
  spell,
  type TokenizerFixture,
  wordPieceTokenizer,
} from "./tokenizer-fixtures.js";

const fixtures: Readonly<Record<string, TokenizerFixture>> = {
  "byte-level": byteLevelTokenizer(),
  "byte-fallback": byteFallbackTokenizer(),
  metaspace: metaspaceTokenizer(),
  WordPiece: wordPieceTokenizer(),
};

const tokenizerOf = ({ tokenizer, config, size }: TokenizerFixture): Tokenizer =>
  new Tokenizer({ tokenizer, config }, size);

/** The text of each token as it streams, and of the end. */
function stream(tokenizer: Tokenizer, ids: readonly number[], prompt: readonly number[] = []): string[] {
  const detokenizer = tokenizer.createDetokenizer(prompt);
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

/** Texts with characters of one to four bytes, spaces in odd places, and what looks like a broken character. */
const text = fc.string({
  unit: fc.constantFrom("a", "the ", " hello", "  ", "\u00e9", "\u4f60\u597d", "\u{1f600}", "\ufffd", "."),
});

describe("streaming detokenization", () => {
  for (const [name, fixture] of Object.entries(fixtures)) {
    const tokenizer = tokenizerOf(fixture);
    const library = new Library(fixture.tokenizer, fixture.config);
    const decodeAll = (ids: number[]): string =>
      ids.length === 0 ? "" : library.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
    const ids = fc.array(fc.nat(fixture.size - 1), { maxLength: 60 });

    it(`gives the text that decoding all ${name} tokens at once gives, for any tokens`, () => {
      fc.assert(
        fc.property(ids, (sequence) => {
          assert.equal(stream(tokenizer, sequence).join(""), decodeAll(sequence));
          assert.equal(tokenizer.decode(sequence), decodeAll(sequence));
        }),
        { numRuns: 1000 },
      );
    });

    it(`never shows a character of ${name} tokens before it is complete`, () => {
      fc.assert(
        fc.property(text, (original) => {
          const encoded = tokenizer.encode(original, { addSpecialTokens: false });
          const expected = decodeAll(encoded);
          let shown = "";
          for (const piece of stream(tokenizer, encoded)) {
            shown += piece;
            assert.ok(expected.startsWith(shown), `${JSON.stringify(shown)} begins ${JSON.stringify(expected)}`);
          }
          assert.equal(shown, expected);
        }),
        { numRuns: 500 },
      );
    });
  }

  it("holds back the bytes of a character until the last one came, wherever tokens are cut", () => {
    const fixture = byteLevelTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const token = (bytes: readonly number[]): number => fixture.id(spell(bytes));
    assert.deepEqual(
      stream(
        tokenizer,
        [0xf0, 0x9f, 0x98, 0x80].map((byte) => token([byte])),
      ),
      ["", "", "", "\u{1f600}", ""],
    );
    // 你好 as [e4 bd] [a0 e5] [a5] [bd]: the second token completes one character and begins the next.
    const crossing = [token([0xe4, 0xbd]), token([0xa0, 0xe5]), token([0xa5]), token([0xbd])];
    assert.deepEqual(stream(tokenizer, crossing), ["", "\u4f60", "", "\u597d", ""]);
  });

  it("shows a replacement character as soon as bytes can no longer become a character, and at the end", () => {
    const fixture = byteLevelTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const ids = [[0xe4, 0xbd], [0x61], [0xff], [0xe4]].map((bytes) => fixture.id(spell(bytes)));
    assert.deepEqual(stream(tokenizer, ids), ["", "\ufffda", "\ufffd", "", "\ufffd"]);
  });

  it("keeps a byte order mark: it is text like any other", () => {
    const fixture = byteLevelTokenizer();
    const ids = [[0xef, 0xbb], [0xbf], [0x61]].map((bytes) => fixture.id(spell(bytes)));
    assert.deepEqual(stream(tokenizerOf(fixture), ids), ["", "\ufeff", "a", ""]);
  });

  it("leaves special tokens out, and shows added ones as they are spelt", () => {
    const fixture = byteLevelTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const ids = ["<|im_start|>", spell("hello"), "<tool>", "<|im_end|>"].map(fixture.id);
    assert.deepEqual(stream(tokenizer, ids), ["", "hello", "<tool>", "", ""]);
    assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), "<|im_start|>hello<tool><|im_end|>");
    assert.equal(tokenizer.decode([fixture.size + 5, fixture.id(spell("hello"))]), "hello");
  });

  it("keeps the space of the word that begins an answer, as the prompt came before it", () => {
    const fixture = byteFallbackTokenizer();
    const tokenizer = tokenizerOf(fixture);
    const [hello, world, end] = ["\u2581hello", "\u2581world", "</s>"].map(fixture.id);
    assert.ok(hello !== undefined && world !== undefined && end !== undefined);
    assert.deepEqual(stream(tokenizer, [world, hello]), ["world", " hello", ""]);
    assert.deepEqual(stream(tokenizer, [world, hello], [hello, end]), [" world", " hello", ""]);
    assert.deepEqual(
      stream(
        tokenizer,
        [world],
        Array.from({ length: 50 }, () => hello),
      ),
      [" world", ""],
    );
  });

  it("completes a character that the prompt began", () => {
    const fixture = byteLevelTokenizer();
    const ids = [0xe4, 0xbd, 0xa0].map((byte) => fixture.id(spell([byte])));
    assert.deepEqual(stream(tokenizerOf(fixture), ids.slice(2), ids.slice(0, 2)), ["\u4f60", ""]);
  });

  it("does not forget what came before a long run of tokens without text", () => {
    const words = ["", " hello"];
    const detokenizer = new WindowDetokenizer(
      () => ({ text: "", verbatim: false }),
      (ids) =>
        ids
          .map((id) => words[id] ?? "")
          .join("")
          .replace(/^ /, ""),
    );
    const ids = [1, ...Array.from({ length: 20 }, () => 0), 1];
    assert.equal(ids.map((id) => detokenizer.push(id)).join(""), "hello hello");
  });

  const awkward: Readonly<Record<string, (fixture: TokenizerFixture) => number[]>> = {
    "ordinary words": ({ id }) => [id("\u2581hello"), id("ing"), id("\u2581the")],
    "bytes that never make a character": ({ id }) => [id("<0xFF>")],
    "bytes that always could still make one": ({ id }) => [id("<0xE4>"), id("<0xBD>")],
    "characters cut into bytes": ({ id }) => ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"].map(id),
    "replacement characters": ({ id }) => [id("\ufffd")],
    "words that are a replacement character": ({ id }) => [id("\u2581\ufffd")],
    spaces: ({ id }) => [id("\u2581")],
  };
  for (const [name, tokensOf] of Object.entries(awkward)) {
    it(`takes time linear in the number of tokens for ${name}`, () => {
      const fixture = byteFallbackTokenizer();
      const library = new Library(fixture.tokenizer, fixture.config);
      const run = tokensOf(fixture);
      const ids = Array.from({ length: 2000 }, (_, i) => run[i % run.length] ?? 0);
      let decoded = 0;
      const detokenizer = new WindowDetokenizer(
        () => ({ text: "", verbatim: false }),
        (window) => {
          decoded += window.length;
          return library.decode(window, { clean_up_tokenization_spaces: false });
        },
      );
      const streamed = ids.map((id) => detokenizer.push(id)).join("") + detokenizer.flush();
      assert.equal(streamed, library.decode(ids, { clean_up_tokenization_spaces: false }));
      assert.ok(decoded < 40 * ids.length, `${decoded} tokens were decoded for ${ids.length}`);
    });
  }
});
