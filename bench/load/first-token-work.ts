/** What contestants do once they have loaded. */
import type { Capacity } from "../contestants/contestant.js";

/** Enough for a short prompt and one token. */
export const FIRST_TOKEN_CAPACITY: Capacity = { contextTokens: 64, sequences: 1 };
export const PROMPT_TOKENS = 8;
