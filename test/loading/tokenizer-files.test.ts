import assert from "node:assert/strict";
import { CheckpointError } from "../../src/core/errors.js";
import { packStrings } from "../../src/core/packed-strings.js";
import { tokenizerJson } from "../../src/loading/tokenizer-files.js";
import { typedError } from "../engine/errors.js";

describe("tokenizer.json of a packed vocabulary", () => {
  const tokenizer = { version: "1.0", model: { type: "BPE", merges: [["a", "b"]] } };

  it("has its tokens by their ids, also those that objects know", () => {
    const tokens = packStrings(["a", "", "__proto__", "constructor", "b"]);
    const { model } = JSON.parse(JSON.stringify(tokenizerJson({ tokenizer, vocabulary: { tokens } })));
    assert.deepEqual(Object.entries(model.vocab), [
      ["a", 0],
      ["", 1],
      ["__proto__", 2],
      ["constructor", 3],
      ["b", 4],
    ]);
    assert.deepEqual(model.merges, [["a", "b"]]);
  });

  it("is not made where a token is there twice, as one of its ids would have none", () => {
    const vocabulary = { tokens: packStrings(["a", "b", "", "a"]) };
    assert.throws(
      () => tokenizerJson({ tokenizer, vocabulary }),
      typedError(
        CheckpointError,
        "INVALID_TOKENIZER",
        /model.vocab: expected different tokens, .* 0 again .* "a as 3"/,
      ),
    );
  });
});
