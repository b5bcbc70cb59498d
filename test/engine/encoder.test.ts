import assert from "node:assert/strict";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import fc from "fast-check";
import { CheckpointError } from "../../src/core/errors.js";
import { packStrings } from "../../src/core/packed-strings.js";
import { MergeRanks } from "../../src/engine/merge-ranks.js";
import { PackedTokenIds } from "../../src/engine/packed-token-ids.js";
import { Tokenizer } from "../../src/engine/tokenizer.js";
import { type TokenizerFiles, tokenizerJson } from "../../src/loading/tokenizer-files.js";
import { typedError } from "./errors.js";
import { byteLevelTokenizer } from "./tokenizer-fixtures.js";

/** Characters that JSON escapes, that separate merges, and that two UTF-16 units make. */
const part = fc
  .array(fc.constantFrom("a", "b", " ", ",", '"', "\\", "\n", "\u2581", "\u{1f600}", "\ud83d", "__proto__"), {
    maxLength: 3,
  })
  .map((characters) => characters.join(""));

/** Different tokens of three units that FNV-1a makes the same number of. */
function tokensOfOneHash(count: number): string[] {
  const prime = 0x01000193;
  const tokens: string[] = [];
  for (let first = 0x100; tokens.length < count; first++) {
    const begun = Math.imul(0x811c9dc5 ^ first, prime);
    for (let second = 0x100; second < 0x10000 && tokens.length < count; second++) {
      // A last unit can make up for any difference in the low half.
      const state = Math.imul(begun ^ second, prime);
      if (state >>> 16 === 0x1234) {
        tokens.push(String.fromCharCode(first, second, state & 0xffff));
      }
    }
  }
  return tokens;
}

describe("ids of packed tokens", () => {
  it("are those of a Map", () => {
    fc.assert(
      fc.property(fc.uniqueArray(part), fc.array(part), fc.array(part), (tokens, added, asked) => {
        const ids = new PackedTokenIds(packStrings(tokens));
        const map = new Map(tokens.map((token, id) => [token, id]));
        assert.equal(ids.twice, null);
        for (const [i, token] of added.entries()) {
          if (map.has(token)) continue;
          map.set(token, 1000 + i);
          ids.set(token, 1000 + i);
        }
        for (const token of [...tokens, ...added, ...asked]) {
          assert.equal(ids.get(token), map.get(token));
          assert.equal(ids.has(token), map.has(token));
        }
      }),
    );
  });

  it("tell of a token that is there twice", () => {
    fc.assert(
      fc.property(fc.array(part), (tokens) => {
        const { twice } = new PackedTokenIds(packStrings(tokens));
        assert.equal(twice === null, new Set(tokens).size === tokens.length);
        if (twice !== null) assert.equal(tokens[twice[0]], tokens[twice[1]]);
      }),
    );
  });

  it("tell of it as soon with many that are the same", () => {
    assert.deepEqual(new PackedTokenIds(packStrings(new Array<string>(500_000).fill(""))).twice, [0, 1]);
  });

  it("are not looked for among tokens that were chosen to have the same hash", () => {
    const tokens = packStrings(tokensOfOneHash(1000));
    const ids = new PackedTokenIds(tokens);
    assert.ok(ids.crowded);
    assert.equal(ids.twice, null);
    const { tokenizer, config } = byteLevelTokenizer();
    const vocabulary = { tokens, merges: packStrings([]) };
    assert.throws(
      () => new Tokenizer({ tokenizer, config, vocabulary }, 1000),
      typedError(CheckpointError, "INVALID_TOKENIZER", /model.vocab: expected 1000 tokens that a hash tells apart/),
    );
  });

  it("are found however many tokens there are", () => {
    const tokens = Array.from({ length: 70_000 }, (_, i) => `t${i}`);
    const ids = new PackedTokenIds(packStrings(tokens));
    for (const [id, token] of tokens.entries()) assert.equal(ids.get(token), id);
    assert.equal(ids.crowded, false);
    assert.equal(ids.get("t70000"), undefined);
    assert.equal(new PackedTokenIds(packStrings([])).get(""), undefined);
  });
});

describe("ranks of merges", () => {
  const pair = fc.tuple(part, part);

  it("are those that the library would write the JSON of", () => {
    fc.assert(
      fc.property(fc.array(pair), fc.array(pair), (merges, asked) => {
        const expected = new Map(merges.map((merge, rank) => [JSON.stringify(merge), rank]));
        const ranks = new MergeRanks(merges);
        for (const asking of [...merges, ...asked].map((merge) => JSON.stringify(merge))) {
          assert.equal(ranks.get(asking), expected.get(asking), asking);
        }
      }),
    );
  });

  it("are the same where the parts of a merge come together, as the library takes them apart", () => {
    const word = part.map((text) => text.replaceAll(" ", "c"));
    fc.assert(
      fc.property(fc.array(fc.tuple(word, word)), fc.array(pair), (merges, asked) => {
        const strings = merges.map((merge) => merge.join(" "));
        const expected = new Map(strings.map((merge, rank) => [JSON.stringify(merge.split(" ", 2)), rank]));
        for (const ranks of [new MergeRanks(strings), new MergeRanks(packStrings(strings))]) {
          for (const asking of [...merges, ...asked].map((merge) => JSON.stringify(merge))) {
            assert.equal(ranks.get(asking), expected.get(asking), asking);
          }
        }
      }),
    );
  });
});

describe("a tokenizer with a packed vocabulary", () => {
  const merges = ["a b", "ab c", "b c", "\u2581 a", "\u2581a bc", "c c"];
  const tokens = ["<unk>", "<s>", "\u2581", "a", "b", "c", ...merges.map((merge) => merge.replace(" ", "")), "<0x78>"];
  const added = {
    id: 1,
    content: "<s>",
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  };
  const beyond = { ...added, id: tokens.length, content: "<new>", special: false };
  const files = (model: { readonly [key: string]: string | boolean | null }, decoder: string): TokenizerFiles => ({
    tokenizer: {
      normalizer: { type: "Replace", pattern: { String: " " }, content: "\u2581" },
      pre_tokenizer: null,
      post_processor: null,
      added_tokens: [added, beyond],
      decoder: { type: "Sequence", decoders: [{ type: decoder }, { type: "Fuse" }] },
      model: { type: "BPE", byte_fallback: true, fuse_unk: true, ...model },
    },
    config: { bos_token: "<s>" },
    vocabulary: { tokens: packStrings(tokens), merges: packStrings(merges) },
  });

  for (const [name, model] of [
    ["with an unknown token", { unk_token: "<unk>" }],
    ["without one, and words before merges", { unk_token: null, ignore_merges: true }],
  ] as const) {
    it(`cuts texts and puts them together as the library does, ${name}`, () => {
      const stated = files(model, "ByteFallback");
      const library = new Library(tokenizerJson(stated), stated.config);
      const tokenizer = new Tokenizer(stated, 1000);
      const text = fc
        .array(fc.constantFrom("a", "b", "c", " ", "x", "\u{1f600}", "<s>", "<new>"))
        .map((parts) => parts.join(""));
      fc.assert(
        fc.property(text, (given) => {
          const ids: (number | undefined)[] = library.encode(given, { add_special_tokens: false }).ids;
          if (ids.includes(undefined)) return;
          assert.deepEqual(tokenizer.encode(given, { addSpecialTokens: false }), ids);
        }),
      );
      const ids = [...tokens.keys(), tokens.length];
      assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), library.decode(ids));
      for (const id of ids) assert.equal(tokenizer.idOf(tokens[id] ?? "<new>"), id);
    });
  }
});
