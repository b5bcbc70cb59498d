/** Checks of tokenizer.json and tokenizer_config.json, before a library that trusts them reads them. */
import { CheckpointError, describeValue } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";

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
  readonly addedTokens: readonly AddedToken[];
  /** `bos_token` -> `<s>`, and so on, for those that are set. */
  readonly specialTokens: ReadonlyMap<string, string>;
}

/** Throws CheckpointError `INVALID_TOKENIZER` naming the field. */
export function checkTokenizerJson(json: JsonObject, config: JsonObject): CheckedTokenizer {
  checkModel(json["model"]);
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
    addedTokens: addedTokensOf(json["added_tokens"] ?? []),
    specialTokens: specialTokensOf(config),
  };
}

function checkModel(model: JsonValue | undefined): void {
  if (!isJsonObject(model)) throw invalid("model", "an object", model);
  const { vocab, merges } = model;
  if (Array.isArray(vocab)) {
    if (vocab.length > MAX_TOKEN_IDS) throw invalid("model.vocab", `at most ${MAX_TOKEN_IDS} tokens`, vocab);
    for (const entry of vocab) {
      if (!Array.isArray(entry) || typeof entry[0] !== "string" || typeof entry[1] !== "number") {
        throw invalid("model.vocab", "pairs of a token and its score", entry);
      }
    }
  } else if (isJsonObject(vocab)) {
    for (const token of Object.keys(vocab)) {
      const id = vocab[token];
      if (!isTokenId(id)) throw invalidId(`model.vocab[${JSON.stringify(token)}]`, id);
    }
  } else throw invalid("model.vocab", "an object or an array", vocab);
  if (model["type"] === "BPE" && !Array.isArray(merges)) throw invalid("model.merges", "an array", merges);
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

function invalid(field: string, expected: string, value: JsonValue | undefined): CheckpointError {
  const received = describeValue(value);
  return new CheckpointError(
    "INVALID_TOKENIZER",
    `the tokenizer's ${field}: expected ${expected} but received ${received}`,
    { field, expected, received },
  );
}
