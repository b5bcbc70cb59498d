/** What a bench is to the frame that runs it. */
import type { Limits } from "./limits.js";
import type { BenchOptions } from "./options.js";
import type { PeerStatus, Row } from "./result.js";

export interface BenchContext {
  readonly options: BenchOptions;
  readonly limits: Limits;
  /** Hears, on stderr, of what is going on. */
  readonly report: (line: string) => void;
}

export interface Measured {
  readonly rows: readonly Row[];
  readonly peers: readonly PeerStatus[];
}

/** Rejects when a check before the clock fails, and with what contestants reject with. */
export type Bench = (context: BenchContext) => Promise<Measured>;
