/** What a bench is to the frame that runs it. */
import type { MachineLimits } from "../../src/kernels/probe.js";
import type { BenchOptions } from "./options.js";
import type { PeerStatus, Row } from "./result.js";

export interface BenchContext {
  readonly options: BenchOptions;
  /** Measured in this run; null where the addon, which measures, is not there. */
  readonly limits: MachineLimits | null;
  /** Hears, on stderr, of what is going on. */
  readonly report: (line: string) => void;
}

export interface Measured {
  readonly rows: readonly Row[];
  readonly peers: readonly PeerStatus[];
}

/** Rejects when a check before the clock fails, and with what contestants reject with. */
export type Bench = (context: BenchContext) => Promise<Measured>;
