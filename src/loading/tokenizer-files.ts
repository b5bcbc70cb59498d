/** The files that a tokenizer comes in. */
import { CheckpointError, describeValue } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";
import { type PackedStrings, packedString, unpackStrings } from "../core/packed-strings.js";

/** tokenizer.json and tokenizer_config.json, or their equivalents. Plain data: it crosses threads. */
export interface TokenizerFiles {
  readonly tokenizer: JsonObject;
  readonly config: JsonObject;
  /** In place of members of `tokenizer.model`, which is of the type BPE: JSON of as many members takes long to make. */
  readonly vocabulary?: PackedVocabulary;
}

export interface PackedVocabulary {
  /** In place of `vocab`: the tokens in the order of their ids, all different. */
  readonly tokens: PackedStrings;
  /** In place of `merges`: "left right" with no other space. */
  readonly merges?: PackedStrings;
}

/** The whole of tokenizer.json, with the vocabulary in it. Throws CheckpointError `INVALID_TOKENIZER` for a token that is there twice. */
export function tokenizerJson({ tokenizer, vocabulary }: Omit<TokenizerFiles, "config">): JsonObject {
  const model = tokenizer["model"];
  if (vocabulary === undefined || !isJsonObject(model)) return tokenizer;
  const { tokens, merges } = vocabulary;
  // Without a prototype, so that a token like "__proto__" is a token.
  const vocab: Record<string, number> = Object.create(null);
  for (let id = 0; id < tokens.ends.length; id++) {
    const token = packedString(tokens, id) ?? "";
    const other = vocab[token];
    if (other !== undefined) throw repeatedToken(token, other, id);
    vocab[token] = id;
  }
  const unpacked = merges === undefined ? {} : { merges: unpackStrings(merges) };
  return { ...tokenizer, model: { ...model, vocab, ...unpacked } };
}

/** The error of a packed vocabulary in which two ids have one token. */
export function repeatedToken(token: string, first: number, second: number): CheckpointError {
  return invalidTokenizer("model.vocab", `different tokens, and not ${first} again`, `${token} as ${second}`);
}

/** The error of a field of tokenizer.json or tokenizer_config.json. */
export function invalidTokenizer(field: string, expected: string, value: JsonValue | undefined): CheckpointError {
  const received = describeValue(value);
  return new CheckpointError(
    "INVALID_TOKENIZER",
    `the tokenizer's ${field}: expected ${expected} but received ${received}`,
    { field, expected, received },
  );
}
