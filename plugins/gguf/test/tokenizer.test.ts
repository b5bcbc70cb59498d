import assert from "node:assert/strict";
import { Tokenizer } from "@huggingface/tokenizers";
import { type ModelDescription, ShardloomError, tokenizerJson } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { fixtureBytes } from "./fixture.js";
import { type Bytes, bool, f32s, gguf, i32s, llamaPairs, string, strings, TestFolder, u32 } from "./gguf-builder.js";

interface Fixture {
  readonly byteLevel: {
    readonly tokens: string[];
    readonly kinds: number[];
    readonly merges: string[];
    readonly texts: string[];
    readonly ids: Readonly<Record<string, number[][]>>;
  };
  readonly sentencePiece: {
    readonly tokens: string[];
    readonly scores: number[];
    readonly kinds: number[];
    readonly texts: string[];
    readonly ids: number[][];
    readonly decoded: string[];
  };
}

const { byteLevel, sentencePiece }: Fixture = JSON.parse(Buffer.from(fixtureBytes("tokenizers.json")).toString());
const folder = new TestFolder();
after(() => folder.remove());

type Pairs = Readonly<Record<string, Bytes | null>>;

const byteLevelPairs = (pre: string): Pairs => ({
  "tokenizer.ggml.model": string("gpt2"),
  "tokenizer.ggml.pre": string(pre),
  "tokenizer.ggml.tokens": strings(byteLevel.tokens),
  "tokenizer.ggml.token_type": i32s(byteLevel.kinds),
  "tokenizer.ggml.merges": strings(byteLevel.merges),
  "tokenizer.ggml.bos_token_id": u32(byteLevel.tokens.indexOf("<|begin|>")),
  "tokenizer.ggml.eos_token_id": u32(byteLevel.tokens.indexOf("<|end|>")),
});

const sentencePiecePairs: Pairs = {
  "tokenizer.ggml.model": string("llama"),
  "tokenizer.ggml.tokens": strings(sentencePiece.tokens),
  "tokenizer.ggml.scores": f32s(sentencePiece.scores),
  "tokenizer.ggml.token_type": i32s(sentencePiece.kinds),
};

function describeWith(pairs: Pairs): Promise<ModelDescription> {
  return createGgufLoader().describe(folder.write("tokenizer.gguf", gguf({ pairs: llamaPairs(pairs) })));
}

async function tokenizerOf(pairs: Pairs): Promise<Tokenizer> {
  const { tokenizer } = await describeWith(pairs);
  assert.ok(tokenizer !== null);
  // What crosses to another thread must still work there.
  const files = structuredClone(tokenizer);
  return new Tokenizer(tokenizerJson(files), files.config);
}

async function rejectsWith(pairs: Pairs, message: RegExp): Promise<void> {
  await assert.rejects(describeWith(pairs), (error) => {
    assert.ok(error instanceof ShardloomError, String(error));
    assert.equal(error.code, "INVALID_METADATA");
    assert.match(error.message, message);
    return true;
  });
}

describe("a byte-level tokenizer made from GGUF metadata", () => {
  for (const [pre, expected] of Object.entries(byteLevel.ids)) {
    it(`cuts text as the tokenizer.json of ${pre} models does`, async () => {
      const tokenizer = await tokenizerOf(byteLevelPairs(pre));
      byteLevel.texts.forEach((text, i) => {
        const { ids } = tokenizer.encode(text, { add_special_tokens: false });
        assert.deepEqual(ids, expected[i], JSON.stringify(text));
      });
    });
  }

  it("keeps merges of tokens that hold spaces", async () => {
    const { tokenizer } = await describeWith({
      ...byteLevelPairs("smollm"),
      "tokenizer.ggml.merges": strings(["a b", "  c", "a  b"]),
    });
    assert.ok(tokenizer !== null);
    const { model } = tokenizerJson(tokenizer);
    assert.ok(typeof model === "object" && model !== null && "merges" in model);
    assert.deepEqual(model.merges, [
      ["a", "b"],
      [" ", "c"],
      ["a", " b"],
    ]);
  });

  it("gives back the text it was given", async () => {
    const tokenizer = await tokenizerOf(byteLevelPairs("smollm"));
    for (const text of byteLevel.texts.filter((text) => text !== "")) {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false });
      assert.equal(tokenizer.decode(ids, { skip_special_tokens: false }), text);
    }
  });

  it("finds control tokens and user-defined ones in a text; only control tokens are special", async () => {
    const tokenizer = await tokenizerOf(byteLevelPairs("smollm"));
    const { ids } = tokenizer.encode("<|begin|>a<user>b<|end|>", { add_special_tokens: false });
    assert.deepEqual(
      ids.map((id: number) => tokenizer.id_to_token(id)),
      ["<|begin|>", "a", "<user>", "b", "<|end|>"],
    );
    assert.equal(tokenizer.decode(ids, { skip_special_tokens: true }), "a<user>b");
  });

  it("starts and ends a text as the file says, else as the models of its kind do", async () => {
    const idsOf = async (pairs: Pairs): Promise<(string | undefined)[]> => {
      const tokenizer = await tokenizerOf(pairs);
      return tokenizer.encode("a").ids.map((id: number) => tokenizer.id_to_token(id));
    };
    assert.deepEqual(await idsOf(byteLevelPairs("smollm")), ["a"]);
    assert.deepEqual(await idsOf(byteLevelPairs("llama-bpe")), ["<|begin|>", "a"]);
    const add = { "tokenizer.ggml.add_bos_token": bool(true), "tokenizer.ggml.add_eos_token": bool(true) };
    assert.deepEqual(await idsOf({ ...byteLevelPairs("smollm"), ...add }), ["<|begin|>", "a", "<|end|>"]);
    const not = { "tokenizer.ggml.add_bos_token": bool(false) };
    assert.deepEqual(await idsOf({ ...byteLevelPairs("llama-bpe"), ...not }), ["a"]);
  });

  it("takes any token for a token, even names that objects have", async () => {
    const tokens = ["__proto__", "constructor", "a", ""];
    const tokenizer = await tokenizerOf({
      ...byteLevelPairs("smollm"),
      "tokenizer.ggml.tokens": strings(tokens),
      "tokenizer.ggml.token_type": i32s([3, 4, 1, 3]),
      "tokenizer.ggml.merges": strings([]),
      "tokenizer.ggml.bos_token_id": null,
      "tokenizer.ggml.eos_token_id": u32(0),
    });
    const { ids } = tokenizer.encode("a__proto__aconstructor", { add_special_tokens: false });
    assert.deepEqual(ids, [2, 0, 2, 1]);
  });
});

describe("a SentencePiece tokenizer made from GGUF metadata", () => {
  it("cuts text as sentencepiece does", async () => {
    const tokenizer = await tokenizerOf(sentencePiecePairs);
    sentencePiece.texts.forEach((text, i) => {
      const { ids } = tokenizer.encode(text, { add_special_tokens: false });
      assert.deepEqual(ids, sentencePiece.ids[i], JSON.stringify(text));
    });
  });

  it("puts text together as sentencepiece does", async () => {
    const tokenizer = await tokenizerOf(sentencePiecePairs);
    sentencePiece.ids.forEach((ids, i) => {
      // The library's byte fallback drops a byte order mark.
      if (sentencePiece.decoded[i]?.includes("\ufeff")) return;
      assert.equal(tokenizer.decode(ids, { skip_special_tokens: true }), sentencePiece.decoded[i]);
    });
  });

  it("starts a text with the token that such files take for granted", async () => {
    const { config } = await describeWith(sentencePiecePairs);
    assert.deepEqual([config["bos_token_id"], config["eos_token_id"]], [1, 2]);
    assert.equal((await tokenizerOf(sentencePiecePairs)).encode("a").ids[0], 1);
  });

  it("puts no space before a text where the file says so", async () => {
    const tokenizer = await tokenizerOf({ ...sentencePiecePairs, "tokenizer.ggml.add_space_prefix": bool(false) });
    const { ids } = tokenizer.encode("the", { add_special_tokens: false });
    assert.equal(ids.map((id: number) => tokenizer.id_to_token(id)).join(""), "the");
    assert.equal(tokenizer.decode(ids), "the");
  });
});

/** The next process warning, which is not printed. */
async function nextWarning(): Promise<Error> {
  const printers = process.listeners("warning");
  process.removeAllListeners("warning");
  const warning = await new Promise<Error>((resolve) => process.once("warning", resolve));
  for (const printer of printers) process.on("warning", printer);
  return warning;
}

describe("tokenizer_config.json and the chat template made from GGUF metadata", () => {
  it("name the special tokens, the context and the template", async () => {
    const template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    const { tokenizer, chatTemplate, generationConfig } = await describeWith({
      ...byteLevelPairs("smollm"),
      "tokenizer.chat_template": string(template),
      "tokenizer.ggml.unknown_token_id": u32(0),
      "tokenizer.ggml.padding_token_id": u32(1),
    });
    assert.deepEqual(tokenizer?.config, {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      bos_token: "<|begin|>",
      eos_token: "<|end|>",
      unk_token: byteLevel.tokens[0],
      pad_token: byteLevel.tokens[1],
      model_max_length: 128,
      chat_template: template,
    });
    assert.equal(chatTemplate, template);
    const [bos, eos] = ["<|begin|>", "<|end|>"].map((token) => byteLevel.tokens.indexOf(token));
    assert.deepEqual(generationConfig, { bos_token_id: bos, eos_token_id: eos, pad_token_id: 1 });
  });

  it("are not there where the file has no tokenizer", async () => {
    const { tokenizer, chatTemplate, generationConfig } = await describeWith({});
    assert.deepEqual([tokenizer, chatTemplate, generationConfig], [null, null, null]);
  });

  for (const [title, pairs, name] of [
    ["an unknown pre-tokenizer", byteLevelPairs("babel"), "babel"],
    ["no pre-tokenizer", { ...byteLevelPairs("x"), "tokenizer.ggml.pre": null }, "default"],
    ["another kind of tokenizer", { "tokenizer.ggml.model": string("bert") }, "bert"],
  ] as const) {
    it(`leave a model with ${title} to token ids, with a warning that names it`, async () => {
      const warned = nextWarning();
      const { tokenizer, config } = await describeWith(pairs);
      assert.equal(tokenizer, null);
      assert.equal(config["hidden_size"], 32);
      const warning = await warned;
      assert.equal(warning.name, "ShardloomWarning");
      assert.match(warning.message, new RegExp(name));
    });
  }

  const wrong: readonly (readonly [string, Pairs, RegExp])[] = [
    ["no tokens", { "tokenizer.ggml.tokens": null }, /tokens to be there/],
    ["tokens that are numbers", { "tokenizer.ggml.tokens": i32s([1]) }, /an array of strings/],
    ["kinds of other tokens", { "tokenizer.ggml.token_type": i32s([1]) }, /one for each token/],
    ["no merges", { "tokenizer.ggml.merges": null }, /merges to be there/],
    ["a merge of one part", { "tokenizer.ggml.merges": strings(["a b", "ab"]) }, /"ab" as merge 1/],
    ["a merge of nothing", { "tokenizer.ggml.merges": strings(["a "]) }, /"a " as merge 0/],
    [
      "an end token outside the vocabulary",
      { "tokenizer.ggml.eos_token_id": u32(100_000) },
      /end-of-sequence token.*100000/,
    ],
    ["a template that is no string", { "tokenizer.chat_template": u32(1) }, /chat_template to be a string/],
  ];
  for (const [title, pairs, message] of wrong) {
    it(`are not made with ${title}`, () => rejectsWith({ ...byteLevelPairs("smollm"), ...pairs }, message));
  }

  it("are not made with scores of other tokens, or pieces of endless length", async () => {
    await rejectsWith({ ...sentencePiecePairs, "tokenizer.ggml.scores": f32s([0]) }, /scores.*one for each token/);
    await rejectsWith({ ...sentencePiecePairs, "tokenizer.ggml.scores": null }, /scores/);
    const tokens = {
      "tokenizer.ggml.tokens": strings(["a", "b", "x".repeat(257)]),
      "tokenizer.ggml.scores": f32s([0, 0, 0]),
    };
    await rejectsWith(
      { ...sentencePiecePairs, ...tokens, "tokenizer.ggml.token_type": null },
      /at most 256 characters/,
    );
  });
});
