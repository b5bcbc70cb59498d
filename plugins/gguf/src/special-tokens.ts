import type { Metadata } from "./metadata.js";

/** Ids of the tokens with a meaning of their own; null where the file names none. */
export interface SpecialTokens {
  readonly bos: number | null;
  /** Every token that ends an answer: end of text, end of turn, end of message. */
  readonly eos: readonly number[];
  readonly unknown: number | null;
  readonly pad: number | null;
}

/** Reads them; SentencePiece files may leave out those that llama.cpp takes for granted (0, 1, 2). */
export function readSpecialTokens(metadata: Metadata): SpecialTokens {
  const id = (kind: string): number | null => metadata.optionalCount(`tokenizer.ggml.${kind}_token_id`, 0);
  const sentencePiece = metadata.optionalString("tokenizer.ggml.model") === "llama";
  const eos = id("eos") ?? (sentencePiece ? 2 : null);
  const ends = [eos, id("eot"), id("eom")].filter((end) => end !== null);
  return {
    bos: id("bos") ?? (sentencePiece ? 1 : null),
    eos: [...new Set(ends)],
    unknown: id("unknown") ?? (sentencePiece ? 0 : null),
    pad: id("padding"),
  };
}
