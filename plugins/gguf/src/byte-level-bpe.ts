/** Byte-level BPE (`tokenizer.ggml.model` "gpt2") as a tokenizer.json. */
import { type PackedStrings, unpackStrings } from "shardloom/plugin";
import type { Metadata } from "./metadata.js";
import type { PreTokenizer } from "./pre-tokenizers.js";
import type { SpecialTokens } from "./special-tokens.js";
import { addedTokens, type StatedTokenizer, templateProcessor, type Vocabulary } from "./vocabulary.js";

export function byteLevelBpe(
  metadata: Metadata,
  vocabulary: Vocabulary,
  special: SpecialTokens,
  pre: PreTokenizer,
): StatedTokenizer {
  const merges = readMerges(metadata);
  const packed = "ends" in merges ? { merges } : {};
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: addedTokens(vocabulary),
    normalizer: pre.normalizer,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        ...pre.patterns.map((pattern) => ({
          type: "Split",
          pattern: { Regex: pattern },
          behavior: "Isolated",
          invert: false,
        })),
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: templateProcessor(metadata, vocabulary, special, { addBos: pre.addBos, addEos: false }),
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.ignoreMerges,
      merges: "ends" in merges ? [] : merges,
    },
  };
  return { tokenizer, vocabulary: { tokens: vocabulary.tokens, ...packed } };
}

/**
 * "left right" pairs, best first: packed where no part contains a space, as of all but odd vocabularies. The left part has at
 * least one character.
 */
function readMerges(metadata: Metadata): PackedStrings | [string, string][] {
  const key = "tokenizer.ggml.merges";
  const merges = metadata.strings(key);
  const { text, ends } = merges;
  let odd = false;
  for (let rank = 0, start = 0; rank < ends.length; rank++) {
    const end = ends[rank] ?? start;
    const space = text.indexOf(" ", start + 1);
    if (space < 0 || space >= end - 1) {
      const received = `${JSON.stringify(text.slice(start, Math.min(end, start + 80)))} as merge ${rank}`;
      throw metadata.invalid(key, "pairs with a space between", received);
    }
    odd ||= text[start] === " " || text.slice(space + 1, end).includes(" ");
    start = end;
  }
  return odd ? unpackStrings(merges).map(apart) : merges;
}

function apart(merge: string): [string, string] {
  const space = merge.indexOf(" ", 1);
  return [merge.slice(0, space), merge.slice(space + 1)];
}
