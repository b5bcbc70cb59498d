/** The tokens of a file and what kinds they are. */
import {
  CheckpointError,
  type JsonObject,
  type PackedStrings,
  packedString,
  type TokenizerFiles,
} from "shardloom/plugin";
import type { Metadata } from "./metadata.js";
import type { SpecialTokens } from "./special-tokens.js";

/** `enum llama_token_type` in llama.h. */
export const TOKEN_NORMAL = 1;
export const TOKEN_UNKNOWN = 2;
export const TOKEN_CONTROL = 3;
export const TOKEN_USER_DEFINED = 4;

/** A tokenizer.json whose vocabulary lies beside it. */
export type StatedTokenizer = Required<Omit<TokenizerFiles, "config">>;

export interface Vocabulary {
  readonly tokens: PackedStrings;
  /** Kind of every token. */
  readonly kinds: readonly number[];
}

/** Throws CheckpointError `INVALID_METADATA` for lists that do not fit together. */
export function readVocabulary(metadata: Metadata): Vocabulary {
  const tokens = metadata.strings("tokenizer.ggml.tokens");
  const { length } = tokens.ends;
  const key = "tokenizer.ggml.token_type";
  const kinds = metadata.optionalNumbers(key) ?? new Array<number>(length).fill(TOKEN_NORMAL);
  if (kinds.length === length) return { tokens, kinds };
  throw metadata.invalid(key, `${length} numbers, one for each token`, `${kinds.length}`);
}

/** `added_tokens` of tokenizer.json: tokens that are found in a text before it is cut into words. */
export function addedTokens({ tokens, kinds }: Vocabulary): JsonObject[] {
  const added: JsonObject[] = [];
  // By index: this goes through all tokens to find some hundred.
  for (let id = 0; id < kinds.length; id++) {
    const kind = kinds[id];
    const special = kind === TOKEN_CONTROL || kind === TOKEN_UNKNOWN;
    if (!special && kind !== TOKEN_USER_DEFINED) continue;
    const content = packedString(tokens, id) ?? "";
    if (content === "") continue;
    added.push({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special });
  }
  return added;
}

/** The token of an id; null for null. Throws CheckpointError `INVALID_METADATA` for an id beyond the vocabulary. */
export function tokenOf(metadata: Metadata, { tokens }: Vocabulary, id: number | null, what: string): string | null {
  if (id === null) return null;
  return (
    packedString(tokens, id) ?? fail(metadata, `the ${what} token`, `an id below ${tokens.ends.length}`, String(id))
  );
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
  const ids = new Map<string, number>();
  const named = (id: number | null, what: string): string | null => {
    const token = tokenOf(metadata, vocabulary, id, what);
    if (token !== null && id !== null) ids.set(token, id);
    return token;
  };
  const bos = addBos ? named(special.bos, "beginning-of-sequence") : null;
  const eos = addEos ? named(special.eos[0] ?? null, "end-of-sequence") : null;
  if (bos === null && eos === null) return null;
  const sequence = (id: string, type: number): JsonObject[] => [
    ...(bos === null ? [] : [{ SpecialToken: { id: bos, type_id: type } }]),
    { Sequence: { id, type_id: type } },
    ...(eos === null ? [] : [{ SpecialToken: { id: eos, type_id: type } }]),
  ];
  return {
    type: "TemplateProcessing",
    single: sequence("A", 0),
    pair: [...sequence("A", 0), ...sequence("B", 1)],
    special_tokens: Object.fromEntries(
      [...ids].map(([token, id]) => [token, { id: token, ids: [id], tokens: [token] }]),
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
