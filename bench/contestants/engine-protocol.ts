/** What the bench and the process of an engine say to each other. */
import type { Capacity, NextToken } from "./contestant.js";

export type EngineRequest =
  | { readonly method: "load"; readonly capacity: Capacity }
  | { readonly method: "generate"; readonly prompts: readonly (readonly number[])[]; readonly tokens: number }
  | { readonly method: "nextToken"; readonly promptTokenIds: readonly number[]; readonly count: number };

export type EngineAnswer =
  | { readonly kind: "loaded" }
  | { readonly kind: "generated"; readonly times: readonly TokenTimes[] }
  | { readonly kind: "nextToken"; readonly top: NextToken }
  | { readonly kind: "failed"; readonly message: string };

/** Of one sequence, milliseconds since the requests of all of them were made. */
export interface TokenTimes {
  readonly firstMs: number;
  readonly lastMs: number;
}
