/** The tokens of a file and what kinds they are. */
import { CheckpointError, type JsonObject } from "shardloom/plugin";
import type { Metadata } from "./metadata.js";
import type { SpecialTokens } from "./special-tokens.js";

/** `enum llama_token_type` in llama.h. */
export const TOKEN_NORMAL = 1;
export const TOKEN_UNKNOWN = 2;
export const TOKEN_CONTROL = 3;
export const TOKEN_USER_DEFINED = 4;

export interface Vocabulary {
  readonly tokens: readonly string[];
  readonly ids: ReadonlyMap<string, number>;
  /** Kind of every token. */
  readonly kinds: readonly number[];
}

/** Throws CheckpointError `INVALID_METADATA` for lists that do not fit together and tokens that occur twice. */
export function readVocabulary(metadata: Metadata): Vocabulary {
  const key = "tokenizer.ggml.tokens";
  const tokens = metadata.strings(key);
  const ids = new Map(tokens.map((token, id) => [token, id]));
  if (ids.size !== tokens.length) {
    const id = tokens.findIndex((token, at) => ids.get(token) !== at);
    throw metadata.invalid(
      key,
      "different tokens",
      `${JSON.stringify(tokens[id])} as ${id} and ${ids.get(tokens[id] ?? "")}`,
    );
  }
  const kinds = metadata.optionalNumbers("tokenizer.ggml.token_type") ?? tokens.map(() => TOKEN_NORMAL);
  if (kinds.length !== tokens.length) {
    throw metadata.invalid(
      "tokenizer.ggml.token_type",
      `${tokens.length} numbers, one for each token`,
      `${kinds.length}`,
    );
  }
  return { tokens, ids, kinds };
}

/** `vocab` of tokenizer.json. */
export function vocabularyObject({ tokens }: Vocabulary): JsonObject {
  // Without a prototype, so that a token like "__proto__" is a token.
  const object: Record<string, number> = Object.create(null);
  tokens.forEach((token, id) => {
    object[token] = id;
  });
  return object;
}

/** `added_tokens` of tokenizer.json: tokens that are found in a text before it is cut into words. */
export function addedTokens({ tokens, kinds }: Vocabulary): JsonObject[] {
  const added: JsonObject[] = [];
  tokens.forEach((content, id) => {
    const special = kinds[id] === TOKEN_CONTROL || kinds[id] === TOKEN_UNKNOWN;
    if (content === "" || (!special && kinds[id] !== TOKEN_USER_DEFINED)) return;
    added.push({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special });
  });
  return added;
}

/** The token of an id; null for null. Throws CheckpointError `INVALID_METADATA` for an id beyond the vocabulary. */
export function tokenOf(metadata: Metadata, { tokens }: Vocabulary, id: number | null, what: string): string | null {
  if (id === null) return null;
  return tokens[id] ?? fail(metadata, `the ${what} token`, `an id below ${tokens.length}`, String(id));
}

/**
 * `post_processor` of tokenizer.json: puts the beginning- and end-of-sequence tokens around a text. Null where the file
 * wants neither.
 */
export function templateProcessor(
  metadata: Metadata,
  vocabulary: Vocabulary,
  special: SpecialTokens,
  defaults: { readonly addBos: boolean; readonly addEos: boolean },
): JsonObject | null {
  const addBos = metadata.optionalBoolean("tokenizer.ggml.add_bos_token") ?? defaults.addBos;
  const addEos = metadata.optionalBoolean("tokenizer.ggml.add_eos_token") ?? defaults.addEos;
  const bos = addBos ? tokenOf(metadata, vocabulary, special.bos, "beginning-of-sequence") : null;
  const eos = addEos ? tokenOf(metadata, vocabulary, special.eos[0] ?? null, "end-of-sequence") : null;
  if (bos === null && eos === null) return null;
  const sequence = (id: string, type: number): JsonObject[] => [
    ...(bos === null ? [] : [{ SpecialToken: { id: bos, type_id: type } }]),
    { Sequence: { id, type_id: type } },
    ...(eos === null ? [] : [{ SpecialToken: { id: eos, type_id: type } }]),
  ];
  const entries = [bos, eos].filter((token) => token !== null);
  return {
    type: "TemplateProcessing",
    single: sequence("A", 0),
    pair: [...sequence("A", 0), ...sequence("B", 1)],
    special_tokens: Object.fromEntries(
      entries.map((token) => [token, { id: token, ids: [vocabulary.ids.get(token) ?? 0], tokens: [token] }]),
    ),
  };
}

function fail(metadata: Metadata, what: string, expected: string, received: string): never {
  throw new CheckpointError(
    "INVALID_METADATA",
    `${metadata.file}: expected ${what} to be ${expected} but received ${received}`,
    {
      file: metadata.file,
      expected,
      received,
    },
  );
}
