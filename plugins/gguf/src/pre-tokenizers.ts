/**
 * How byte-level BPE cuts text into words, by the names of `tokenizer.ggml.pre`. Each entry says what tokenizer.json of
 * the models behind that name says; the name list is `load` in llama.cpp's llama-vocab.cpp. A name whose published
 * definition is not known exactly is left out: text that is cut a little differently gives other tokens, silently.
 */
import type { JsonObject } from "shardloom/plugin";

export interface PreTokenizer {
  readonly normalizer: JsonObject | null;
  /** Patterns applied one after another; each isolates its matches. */
  readonly patterns: readonly string[];
  /** Whether a word that is itself in the vocabulary is one token, whatever the merges say. */
  readonly ignoreMerges: boolean;
  /** Whether a text starts with the beginning-of-sequence token where `tokenizer.ggml.add_bos_token` does not say. */
  readonly addBos: boolean;
}

/** The pattern that a ByteLevel pre-tokenizer applies by default. */
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** A Digits pre-tokenizer with individual digits. */
const DIGIT = "\\p{N}";

const wordsOf = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

const TEKKEN = [
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
  "\\p{N}",
  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*",
  "\\s*[\\r\\n]+",
  "\\s+(?!\\S)",
  "\\s+",
].join("|");

const gpt2: PreTokenizer = { normalizer: null, patterns: [GPT2], ignoreMerges: false, addBos: false };
const starcoder: PreTokenizer = { ...gpt2, patterns: [DIGIT, GPT2] };
const llama3: PreTokenizer = {
  normalizer: null,
  patterns: [wordsOf("\\p{N}{1,3}")],
  ignoreMerges: true,
  addBos: true,
};
const qwen2: PreTokenizer = {
  normalizer: { type: "NFC" },
  patterns: [wordsOf("\\p{N}")],
  ignoreMerges: false,
  addBos: false,
};
const tekken: PreTokenizer = { normalizer: null, patterns: [TEKKEN], ignoreMerges: true, addBos: true };

export const PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map([
  ["gpt-2", gpt2],
  ["smollm", starcoder],
  ["starcoder", starcoder],
  ["llama-bpe", llama3],
  ["llama3", llama3],
  ["llama-v3", llama3],
  ["qwen2", qwen2],
  ["tekken", tekken],
]);
