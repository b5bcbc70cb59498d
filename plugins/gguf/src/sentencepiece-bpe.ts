/**
 * SentencePiece BPE (`tokenizer.ggml.model` "llama") as a tokenizer.json, the way transformers converts it
 * (`LlamaConverter` and `generate_merges` in convert_slow_tokenizer.py): a piece with a higher score is merged earlier.
 */
import { unpackStrings } from "shardloom/plugin";
import type { Metadata } from "./metadata.js";
import type { SpecialTokens } from "./special-tokens.js";
import { addedTokens, type StatedTokenizer, TOKEN_NORMAL, templateProcessor, type Vocabulary } from "./vocabulary.js";

/** SentencePiece itself trains pieces of at most 16 characters unless told otherwise. */
const MAX_PIECE_CHARACTERS = 256;

const SPACE = "\u2581";

export function sentencePieceBpe(metadata: Metadata, vocabulary: Vocabulary, special: SpecialTokens): StatedTokenizer {
  const addPrefix = metadata.optionalBoolean("tokenizer.ggml.add_space_prefix") ?? true;
  const tokens = unpackStrings(vocabulary.tokens);
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: addedTokens(vocabulary),
    normalizer: {
      type: "Sequence",
      normalizers: [
        ...(addPrefix ? [{ type: "Prepend", prepend: SPACE }] : []),
        { type: "Replace", pattern: { String: " " }, content: SPACE },
      ],
    },
    pre_tokenizer: null,
    post_processor: templateProcessor(metadata, vocabulary, special, { addBos: true, addEos: false }),
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: SPACE }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(addPrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: tokens[special.unknown ?? -1] ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      merges: mergesFromScores(metadata, tokens, vocabulary.kinds),
    },
  };
  return { tokenizer, vocabulary: { tokens: vocabulary.tokens } };
}

interface Merge {
  readonly left: string;
  readonly right: string;
  readonly score: number;
  readonly leftLength: number;
  readonly rightLength: number;
  readonly leftId: number;
  readonly rightId: number;
}

/** Every way to put a piece together from two others, by the score of the piece, best first. */
function mergesFromScores(metadata: Metadata, tokens: readonly string[], kinds: readonly number[]): [string, string][] {
  const key = "tokenizer.ggml.scores";
  const scores = metadata.optionalNumbers(key) ?? [];
  if (scores.length !== tokens.length) {
    throw metadata.invalid(key, `${tokens.length} numbers, one for each token`, String(scores.length));
  }
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges = tokens.flatMap((token, id) =>
    // Control, unknown and byte tokens never come from merging text.
    kinds[id] === TOKEN_NORMAL ? splits(metadata, ids, token, scores[id] ?? 0) : [],
  );
  merges.sort((a, b) => b.score - a.score || b.leftLength - a.leftLength || b.rightLength - a.rightLength);
  return merges.map(({ left, right }) => [left, right]);
}

function splits(metadata: Metadata, ids: ReadonlyMap<string, number>, token: string, score: number): Merge[] {
  const characters = [...token];
  if (characters.length > MAX_PIECE_CHARACTERS) {
    const received = `one of ${characters.length}`;
    throw metadata.invalid("tokenizer.ggml.tokens", `pieces of at most ${MAX_PIECE_CHARACTERS} characters`, received);
  }
  const found: Merge[] = [];
  for (let length = 1, at = 0; length < characters.length; length++) {
    at += characters[length - 1]?.length ?? 0;
    const left = token.slice(0, at);
    const right = token.slice(at);
    const leftId = ids.get(left);
    const rightId = ids.get(right);
    if (leftId === undefined || rightId === undefined) continue;
    found.push({ left, right, score, leftLength: length, rightLength: characters.length - length, leftId, rightId });
  }
  return found.sort((a, b) => a.leftId - b.leftId || a.rightId - b.rightId);
}
