/** Byte-level BPE (`tokenizer.ggml.model` "gpt2") as a tokenizer.json. */
import type { JsonObject } from "shardloom/plugin";
import type { Metadata } from "./metadata.js";
import type { PreTokenizer } from "./pre-tokenizers.js";
import type { SpecialTokens } from "./special-tokens.js";
import { addedTokens, templateProcessor, type Vocabulary, vocabularyObject } from "./vocabulary.js";

export function byteLevelBpe(
  metadata: Metadata,
  vocabulary: Vocabulary,
  special: SpecialTokens,
  pre: PreTokenizer,
): JsonObject {
  return {
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
      vocab: vocabularyObject(vocabulary),
      merges: readMerges(metadata),
    },
  };
}

/** "left right" pairs, best first. The left part has at least one character, which may be a space in odd vocabularies. */
function readMerges(metadata: Metadata): [string, string][] {
  const key = "tokenizer.ggml.merges";
  return metadata.strings(key).map((merge, rank) => {
    const space = merge.indexOf(" ", 1);
    if (space < 0 || space === merge.length - 1) {
      throw metadata.invalid(
        key,
        "pairs with a space between",
        `${JSON.stringify(merge.slice(0, 80))} as merge ${rank}`,
      );
    }
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
}
