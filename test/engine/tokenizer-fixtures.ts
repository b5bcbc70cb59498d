/** Small tokenizers in Hugging Face's format, one of each kind that language models have. */
import type { JsonObject } from "../../src/core/json.js";

export interface TokenizerFixture {
  readonly tokenizer: JsonObject;
  readonly config: JsonObject;
  /** Ids from 0 to this, exclusive, have a token. */
  readonly size: number;
  readonly id: (token: string) => number;
}

/** The printable character that each byte is spelt as, by GPT-2's rule. */
function byteSpellings(): string[] {
  const printable = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

const spellings = byteSpellings();

/** Text, or bytes, as a byte-level vocabulary spells them. */
export function spell(text: string | readonly number[]): string {
  const bytes = typeof text === "string" ? [...new TextEncoder().encode(text)] : text;
  return bytes.map((byte) => spellings[byte] ?? "").join("");
}

const added = (id: number, content: string, special: boolean): JsonObject => ({
  id,
  content,
  special,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
});

function fixture(tokenizer: JsonObject, config: JsonObject, ids: ReadonlyMap<string, number>): TokenizerFixture {
  return {
    tokenizer,
    config,
    size: Math.max(...ids.values()) + 1,
    id: (token) => {
      const id = ids.get(token);
      if (id === undefined) throw new RangeError(`the fixture has no token ${token}`);
      return id;
    },
  };
}

/** Words, and runs of bytes that begin or end inside of characters, as real byte-level vocabularies have them. */
const BYTE_LEVEL_TOKENS: readonly string[] = [
  ...["hello", " world", "ing", "the", " the", "..."].map(spell),
  ...["\u4f60", "\u597d", "\u{1f600}"].map(spell),
  spell([0xe4, 0xbd]),
  spell([0xa0, 0xe5]),
  spell([0xf0, 0x9f]),
  spell([0x98, 0x80, 0xf0]),
  spell([0xef, 0xbb]),
];

/** Byte-level BPE (GPT-2, Llama 3, SmolLM2): 256 bytes, some merges, two special tokens and one added token. */
export function byteLevelTokenizer(): TokenizerFixture {
  const ids = new Map(spellings.map((spelling, byte) => [spelling, byte]));
  const merges: [string, string][] = [];
  for (const token of BYTE_LEVEL_TOKENS) {
    let left = "";
    for (const unit of token) {
      if (left !== "" && !ids.has(left + unit)) {
        merges.push([left, unit]);
        ids.set(left + unit, ids.size);
      }
      left += unit;
    }
  }
  const vocab = Object.fromEntries(ids);
  const start = ids.size;
  const addedTokens = [added(start, "<|im_start|>", true), added(start + 1, "<|im_end|>", true)].concat([
    added(start + 2, "<tool>", false),
  ]);
  for (const [i, content] of ["<|im_start|>", "<|im_end|>", "<tool>"].entries()) ids.set(content, start + i);
  return fixture(
    {
      version: "1.0",
      added_tokens: addedTokens,
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      post_processor: null,
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: { type: "BPE", unk_token: null, byte_fallback: false, ignore_merges: false, vocab, merges },
    },
    {
      bos_token: "<|im_start|>",
      eos_token: { content: "<|im_end|>" },
      pad_token: null,
      clean_up_tokenization_spaces: true,
    },
    ids,
  );
}

/** Sentencepiece BPE with byte fallback (Llama 2, Mistral, Gemma): spaces are part of words, the first one is dropped. */
export function byteFallbackTokenizer(): TokenizerFixture {
  const ids = new Map<string, number>();
  const addToken = (token: string): void => {
    if (!ids.has(token)) ids.set(token, ids.size);
  };
  for (const token of ["<unk>", "<s>", "</s>"]) addToken(token);
  for (let byte = 0; byte < 256; byte++) addToken(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  for (const unit of "\u2581abcdefghijklmnopqrstuvwxyz.,\u4f60\ufffd") addToken(unit);
  const merges: [string, string][] = [];
  for (const token of ["\u2581hello", "\u2581world", "ing", "\u2581the", "\u2581\ufffd", "\u2581\u2581"]) {
    let left = "";
    for (const unit of token) {
      if (left !== "" && !ids.has(left + unit)) {
        merges.push([left, unit]);
        addToken(left + unit);
      }
      left += unit;
    }
  }
  return fixture(
    {
      version: "1.0",
      added_tokens: [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "\u2581" },
          { type: "Replace", pattern: { String: " " }, content: "\u2581" },
        ],
      },
      pre_tokenizer: null,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "\u2581" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        unk_token: "<unk>",
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab: Object.fromEntries(ids),
        merges,
      },
    },
    { bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>" },
    ids,
  );
}

/** Sentencepiece Unigram (T5, XLM-R): the decoder drops the space of the first token only. */
export function metaspaceTokenizer(): TokenizerFixture {
  const tokens = [
    "<unk>",
    "</s>",
    "\u2581",
    "\u2581hello",
    "\u2581world",
    "ing",
    "\u2581the",
    "a",
    "b",
    ".",
    "\u{1f600}",
  ];
  return fixture(
    {
      version: "1.0",
      added_tokens: [added(0, "<unk>", true), added(1, "</s>", true)],
      normalizer: null,
      pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: true },
      post_processor: null,
      decoder: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: true },
      model: { type: "Unigram", unk_id: 0, vocab: tokens.map((token, i) => [token, -i - 1]), byte_fallback: false },
    },
    { eos_token: "</s>", unk_token: "<unk>" },
    new Map(tokens.map((token, id) => [token, id])),
  );
}

/** WordPiece (BERT): pieces are joined with spaces unless marked as continuations. */
export function wordPieceTokenizer(): TokenizerFixture {
  const tokens = ["[UNK]", "[SEP]", "hello", "world", "##ing", "##s", "the", "."];
  return fixture(
    {
      version: "1.0",
      added_tokens: [added(0, "[UNK]", true), added(1, "[SEP]", true)],
      normalizer: null,
      pre_tokenizer: { type: "WhitespaceSplit" },
      post_processor: null,
      decoder: { type: "WordPiece", prefix: "##", cleanup: false },
      model: {
        type: "WordPiece",
        unk_token: "[UNK]",
        continuing_subword_prefix: "##",
        max_input_chars_per_word: 100,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      },
    },
    { eos_token: "[SEP]", unk_token: "[UNK]" },
    new Map(tokens.map((token, id) => [token, id])),
  );
}
