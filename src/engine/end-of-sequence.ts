/** Which tokens end an answer. */
import { CheckpointError, describeValue } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import type { Tokenizer } from "./tokenizer.js";

/**
 * The ids that any of a model's files calls end-of-sequence: config.json (`modelIds`), generation_config.json, where
 * chat models list the end of a turn, and the tokenizer's `eos_token`. Throws CheckpointError
 * `INVALID_GENERATION_CONFIG`.
 */
export function endOfSequenceIdsOf(
  modelIds: readonly number[],
  generationConfig: JsonObject | null,
  tokenizer: Tokenizer | null,
): readonly number[] {
  const token = tokenizer?.specialTokens.get("eos_token");
  const tokenizerId = token === undefined ? undefined : tokenizer?.idOf(token);
  return [
    ...new Set([...modelIds, ...generationIds(generationConfig), ...(tokenizerId === undefined ? [] : [tokenizerId])]),
  ];
}

function generationIds(generationConfig: JsonObject | null): number[] {
  const value = generationConfig?.["eos_token_id"] ?? null;
  if (value === null) return [];
  const ids = Array.isArray(value) ? value : [value];
  return ids.map((id) => {
    if (typeof id === "number" && Number.isInteger(id) && id >= 0) return id;
    throw new CheckpointError(
      "INVALID_GENERATION_CONFIG",
      `generation_config.json: expected eos_token_id to be a token id, or an array of them, but received ${describeValue(id)}`,
      { field: "eos_token_id", expected: "token ids", received: describeValue(id) },
    );
  });
}
