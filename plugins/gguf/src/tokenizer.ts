/** From the metadata to what tokenizer.json and tokenizer_config.json would say. */
import type { TokenizerFiles } from "shardloom/plugin";
import { byteLevelBpe } from "./byte-level-bpe.js";
import type { Metadata } from "./metadata.js";
import { PRE_TOKENIZERS } from "./pre-tokenizers.js";
import { sentencePieceBpe } from "./sentencepiece-bpe.js";
import type { SpecialTokens } from "./special-tokens.js";
import { readVocabulary, type StatedTokenizer, tokenOf, type Vocabulary } from "./vocabulary.js";

/**
 * Null where the file has no tokenizer, and where it has one of a kind that cannot be stated exactly: then a process
 * warning `UNSUPPORTED_TOKENIZER` names it, and the model still answers to token ids.
 *
 * Throws CheckpointError `INVALID_METADATA` for a tokenizer that is damaged.
 */
export function describeTokenizer(
  metadata: Metadata,
  special: SpecialTokens,
  contextLength: number,
): TokenizerFiles | null {
  const model = metadata.optionalString("tokenizer.ggml.model");
  if (model === null || model === "none" || model === "no_vocab") return null;
  const build = builder(metadata, model);
  if (build === null) return null;
  const vocabulary = readVocabulary(metadata);
  return {
    ...build(vocabulary, special),
    config: {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      bos_token: tokenOf(metadata, vocabulary, special.bos, "beginning-of-sequence"),
      eos_token: tokenOf(metadata, vocabulary, special.eos[0] ?? null, "end-of-sequence"),
      unk_token: tokenOf(metadata, vocabulary, special.unknown, "unknown"),
      pad_token: tokenOf(metadata, vocabulary, special.pad, "padding"),
      model_max_length: contextLength,
      chat_template: metadata.optionalString("tokenizer.chat_template"),
    },
  };
}

function builder(
  metadata: Metadata,
  model: string,
): ((vocabulary: Vocabulary, special: SpecialTokens) => StatedTokenizer) | null {
  if (model === "llama") return (vocabulary, special) => sentencePieceBpe(metadata, vocabulary, special);
  const supported = `llama, or gpt2 with the pre-tokenizer ${[...PRE_TOKENIZERS.keys()].join(", ")}`;
  if (model !== "gpt2") return warn(metadata, supported, model);
  const name = metadata.optionalString("tokenizer.ggml.pre") ?? "default";
  const pre = PRE_TOKENIZERS.get(name);
  if (pre === undefined) return warn(metadata, supported, `gpt2 with ${JSON.stringify(name)}`);
  return (vocabulary, special) => byteLevelBpe(metadata, vocabulary, special, pre);
}

function warn(metadata: Metadata, expected: string, received: string): null {
  process.emitWarning(
    `${metadata.file}: expected a tokenizer of the kind ${expected}, but received ${received}: only token ids can be given to this model`,
    { type: "ShardloomWarning", code: "UNSUPPORTED_TOKENIZER" },
  );
  return null;
}
