/** The tokenizer of @huggingface/tokenizers, made without what takes it long. */
import { Tokenizer as Encoder } from "@huggingface/tokenizers";
import { invariant } from "../core/errors.js";
import { isJsonObject, type JsonObject } from "../core/json.js";
import type { PackedStrings } from "../core/packed-strings.js";
import { type Merge, MergeRanks } from "./merge-ranks.js";

export type { Encoder };

/** Vocabulary and merges of a BPE tokenizer, without the tokens that are added to it. */
export interface BpeTables {
  /** Ids by tokens; handed over, and added to. */
  readonly ids: Map<string, number>;
  readonly tokenOf: (id: number) => string | undefined;
  /** All tokens, each at its id. */
  readonly allTokens: () => string[];
  readonly merges: readonly Merge[] | PackedStrings;
}

/**
 * An encoder by a tokenizer.json. With `bpe`, its model's vocabulary and merges are those: the library goes through a
 * vocabulary five times when it makes a tokenizer, and writes JSON for every merge.
 */
export function createEncoder(tokenizer: JsonObject, config: JsonObject, bpe: BpeTables | null): Encoder {
  if (bpe === null) return new Encoder(tokenizer, config);
  const { ids, allTokens, merges } = bpe;
  const stated = isJsonObject(tokenizer["model"]) ? tokenizer["model"] : {};
  const encoder = new Encoder({ ...tokenizer, model: { ...stated, vocab: {}, merges: [] } }, config);
  const { model } = encoder;
  invariant(model !== null && "bpe_ranks" in model, "the library keeps the ranks of merges elsewhere");
  const unknown = typeof model.unk_token === "string" ? ids.get(model.unk_token) : undefined;
  if (unknown !== undefined) model.unk_token_id = unknown;
  const added = model.tokens_to_ids;
  for (const [token, id] of added) ids.set(token, id);
  model.tokens_to_ids = ids;
  model.bpe_ranks = new MergeRanks(merges);
  // For decoders other than the byte-level one: not before there is something to decode.
  let vocab: string[] | undefined;
  Object.defineProperty(model, "vocab", {
    get: () => {
      vocab ??= withAdded(allTokens(), added);
      return vocab;
    },
  });
  return encoder;
}

function withAdded(tokens: string[], added: ReadonlyMap<string, number>): string[] {
  for (const [token, id] of added) tokens[id] = token;
  return tokens;
}
