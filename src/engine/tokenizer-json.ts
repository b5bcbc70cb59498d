/** Checks of tokenizer.json and tokenizer_config.json, before a library that trusts them reads them. */
import type { CheckpointError } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";
import { type PackedStrings, packedString, unpackStrings } from "../core/packed-strings.js";
import {
  invalidTokenizer as invalid,
  type PackedVocabulary,
  repeatedToken,
  type TokenizerFiles,
} from "../loading/tokenizer-files.js";
import type { BpeTables } from "./encoder.js";
import type { Merge } from "./merge-ranks.js";
import { PackedTokenIds } from "./packed-token-ids.js";

/** No vocabulary has more ids. The library keeps them in an array. */
const MAX_TOKEN_IDS = 1 << 24;

/** Fields of tokenizer_config.json that name special tokens. */
const SPECIAL_TOKEN_NAMES: readonly string[] = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
];

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

export interface CheckedTokenizer {
  /** tokenizer.json with every section that may be left out. */
  readonly tokenizer: JsonObject;
  readonly config: JsonObject;
  /** Vocabulary and merges of a BPE tokenizer; null for others, whose are in tokenizer.json. */
  readonly bpe: BpeTables | null;
  readonly addedTokens: readonly AddedToken[];
  /** `bos_token` -> `<s>`, and so on, for those that are set. */
  readonly specialTokens: ReadonlyMap<string, string>;
}

/** Throws CheckpointError `INVALID_TOKENIZER` naming the field. */
export function checkTokenizerFiles({ tokenizer: json, config, vocabulary }: TokenizerFiles): CheckedTokenizer {
  const bpe = checkModel(json["model"], vocabulary);
  for (const section of ["normalizer", "pre_tokenizer", "post_processor", "decoder"]) {
    const value = json[section] ?? null;
    if (value !== null && !isJsonObject(value)) throw invalid(section, "an object or null", value);
  }
  const additional = config["additional_special_tokens"] ?? [];
  if (!Array.isArray(additional)) throw invalid("additional_special_tokens", "an array", additional);
  const optional = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, added_tokens: [] };
  return {
    tokenizer: { ...optional, ...json },
    config,
    bpe,
    addedTokens: addedTokensOf(json["added_tokens"] ?? []),
    specialTokens: specialTokensOf(config),
  };
}

function checkModel(model: JsonValue | undefined, packed: PackedVocabulary | undefined): BpeTables | null {
  if (!isJsonObject(model)) throw invalid("model", "an object", model);
  if (model["type"] !== "BPE") {
    checkVocab(model["vocab"]);
    return null;
  }
  const vocabulary = packed === undefined ? checkVocab(model["vocab"]) : checkPacked(packed.tokens);
  const merges = packed?.merges ?? checkMerges(model["merges"]);
  return vocabulary === null ? null : { ...vocabulary, merges };
}

type Vocabulary = Omit<BpeTables, "merges">;

function checkPacked(tokens: PackedStrings): Vocabulary {
  const { length } = tokens.ends;
  if (length > MAX_TOKEN_IDS) throw invalid("model.vocab", `at most ${MAX_TOKEN_IDS} tokens`, length);
  const ids = new PackedTokenIds(tokens);
  if (ids.crowded) throw invalid("model.vocab", `${length} tokens that a hash tells apart`, "others");
  const tokenOf = (id: number): string | undefined => packedString(tokens, id);
  if (ids.twice !== null) {
    const [first, second] = ids.twice;
    throw repeatedToken(tokenOf(second) ?? "", first, second);
  }
  return { ids, tokenOf, allTokens: () => unpackStrings(tokens) };
}

/** Null for an array of tokens and scores. */
function checkVocab(vocab: JsonValue | undefined): Vocabulary | null {
  if (Array.isArray(vocab)) {
    if (vocab.length > MAX_TOKEN_IDS) throw invalid("model.vocab", `at most ${MAX_TOKEN_IDS} tokens`, vocab);
    for (const entry of vocab) {
      if (!Array.isArray(entry) || typeof entry[0] !== "string" || typeof entry[1] !== "number") {
        throw invalid("model.vocab", "pairs of a token and its score", entry);
      }
    }
    return null;
  }
  if (!isJsonObject(vocab)) throw invalid("model.vocab", "an object or an array", vocab);
  const ids = new Map<string, number>();
  const tokens: string[] = [];
  for (const token of Object.keys(vocab)) {
    const id = vocab[token];
    if (!isTokenId(id)) throw invalidId(`model.vocab[${JSON.stringify(token)}]`, id);
    ids.set(token, id);
    tokens[id] = token;
  }
  return { ids, tokenOf: (id) => tokens[id], allTokens: () => tokens };
}

function checkMerges(merges: JsonValue | undefined): readonly Merge[] {
  if (!Array.isArray(merges)) throw invalid("model.merges", "an array", merges);
  if (merges.every(isMerge)) return merges;
  throw invalid(
    "model.merges",
    "pairs of tokens",
    merges.find((merge) => !isMerge(merge)),
  );
}

function isMerge(merge: JsonValue): merge is string | string[] {
  return typeof merge === "string" || (Array.isArray(merge) && merge.every((part) => typeof part === "string"));
}

function addedTokensOf(value: JsonValue): AddedToken[] {
  if (!Array.isArray(value)) throw invalid("added_tokens", "an array", value);
  return value.map((token, i) => {
    if (!isJsonObject(token)) throw invalid(`added_tokens[${i}]`, "an object", token);
    const { id, content, special } = token;
    if (typeof content !== "string" || content === "") throw invalid(`added_tokens[${i}].content`, "a text", content);
    if (!isTokenId(id)) throw invalidId(`added_tokens[${i}].id`, id);
    return { id, content, special: special === true };
  });
}

function isTokenId(id: JsonValue | undefined): id is number {
  return typeof id === "number" && Number.isInteger(id) && id >= 0 && id < MAX_TOKEN_IDS;
}

function invalidId(field: string, id: JsonValue | undefined): CheckpointError {
  return invalid(field, `a token id from 0 to ${MAX_TOKEN_IDS - 1}`, id);
}

/** A special token is a text, or an object that describes an added token. */
function specialTokensOf(config: JsonObject): Map<string, string> {
  const tokens = new Map<string, string>();
  for (const name of SPECIAL_TOKEN_NAMES) {
    const value = config[name] ?? null;
    const content = isJsonObject(value) ? value["content"] : value;
    if (content === null) continue;
    if (typeof content !== "string") throw invalid(name, "a text, or an object with its content", value);
    tokens.set(name, content);
  }
  return tokens;
}
