/** What a bench finds, as data: the shape of result files. */
import type { MachineLimits } from "../../src/kernels/probe.js";
import type { Machine } from "./machine.js";
import { pairRatios, type Summary, summarize } from "./statistics.js";

/** Of the shape below; changes when a reader of older files would misread newer ones. */
export const RESULT_VERSION = 1;

export interface BenchResult {
  readonly schema: "shardloom-bench";
  readonly version: typeof RESULT_VERSION;
  readonly bench: string;
  /** ISO 8601, when the run started. */
  readonly date: string;
  /** What whoever ran it says of the circumstances; empty for nothing. */
  readonly note: string;
  readonly machine: Machine;
  /** What the machine can do at most, measured in the same run; null where the addon, which measures, is not there. */
  readonly limits: MachineLimits | null;
  /** Peers that took part, and those that did not with the reason. */
  readonly peers: readonly PeerStatus[];
  readonly rows: readonly Row[];
}

export interface PeerStatus {
  readonly name: string;
  readonly version: string | null;
  /** Why it took no part; null when it did. */
  readonly absent: string | null;
}

/** One thing measured, of every contestant. */
export interface Row {
  /** What was measured: model, weights, tokens and the like, in the order of the table's columns. */
  readonly subject: Readonly<Record<string, string | number>>;
  readonly unit: string;
  readonly better: "higher" | "lower";
  readonly contestants: readonly ContestantResult[];
  /** The first contestant's, and every other one's of ours, over each peer's, round by round. */
  readonly ratios: readonly Ratio[];
  /** Checks that passed before the clock started. */
  readonly validated: readonly string[];
}

export interface ContestantResult extends Summary {
  readonly name: string;
  readonly samples: readonly number[];
  /** The physical limit that bounds it, and how much of it the median reached; null where none is known. */
  readonly limit: LimitShare | null;
}

export interface LimitShare {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly achieved: number;
  readonly share: number;
}

export interface Ratio extends Summary {
  readonly ours: string;
  readonly peer: string;
  readonly values: readonly number[];
}

export interface Sampled {
  readonly name: string;
  /** Whether it is a peer's. */
  readonly peer: boolean;
  readonly samples: readonly number[];
}

export interface RowOptions {
  readonly subject: Row["subject"];
  readonly unit: string;
  readonly better: Row["better"];
  readonly sampled: readonly Sampled[];
  /** What a median means beside the limit of the machine; null where there is none to compare with. */
  readonly limitOf: (median: number, contestant: string) => LimitShare | null;
  readonly validated: readonly string[];
}

/** Puts a row together from samples. */
export function makeRow({ subject, unit, better, sampled, limitOf, validated }: RowOptions): Row {
  const contestants = sampled.map(({ name, samples }): ContestantResult => {
    const summary = summarize(samples);
    return { name, samples, ...summary, limit: limitOf(summary.median, name) };
  });
  const ratios = sampled
    .filter(({ peer }) => !peer)
    .flatMap((ours) =>
      sampled
        .filter(({ peer }) => peer)
        .map((peer): Ratio => {
          const values = pairRatios(ours.samples, peer.samples, better);
          return { ours: ours.name, peer: peer.name, values, ...summarize(values) };
        }),
    );
  return { subject, unit, better, contestants, ratios, validated };
}

/** `achieved` beside a limit; null when limits were not measured. */
export function shareOf(name: string, achieved: number, limit: number | undefined, unit: string): LimitShare | null {
  if (limit === undefined) return null;
  return { name, value: limit, unit, achieved, share: achieved / limit };
}
