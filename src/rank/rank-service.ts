/**
 * What the coordinator and the thread of a rank say to each other outside of steps. Comlink carries it. Everything here
 * is plain data; errors travel as values (`Outcome`), because Comlink's own would lose their class, code and fields and
 * its handlers are global to the process.
 */
import type { MessagePort } from "node:worker_threads";
import type { SharedReadsHandle } from "../checkpoint/shared-reads-memory.js";
import type { CollectiveRegion } from "../collectives/region.js";
import { type TransferableError, toTransferable } from "../core/errors.js";
import type { StepProfileHandle } from "../core/step-profile-memory.js";
import type { RankReport } from "./model-runner.js";
import type { RankOptions } from "./rank-options.js";
import type { RankThreads } from "./rank-threads.js";
import type { StepHandle } from "./step.js";
import type { StepChannelHandle } from "./step-channel.js";

/** `workerData` of a rank's thread. */
export interface RankWorkerData {
  /** Where the thread exposes its RankService. */
  readonly control: MessagePort;
  /** File URLs of the plugins that the rank will load. */
  readonly plugins: readonly string[];
  /** What a thread of tests is told. */
  readonly data?: unknown;
}

/** Everything one rank is told when it starts. */
export interface RankInit {
  readonly rank: number;
  readonly options: RankOptions;
  /** File URLs of the plugins to load, in order. */
  readonly plugins: readonly string[];
  /** The arrays of steps, used in turn. */
  readonly steps: readonly [StepHandle, ...StepHandle[]];
  readonly channel: StepChannelHandle;
  /** The region in which ranks meet; null at world size 1. */
  readonly region: CollectiveRegion | null;
  /** Where ranks find what others have read of the checkpoint; null where each reads for itself. */
  readonly sharedReads: SharedReadsHandle | null;
  readonly collectiveTimeoutMs: number;
  /** Whether ranks compare what every collective left them with. */
  readonly verifyCollectives: boolean;
  readonly threads: RankThreads;
  /** How long the rank spins for the next step before it sleeps. */
  readonly spinMs: number;
  readonly logLevel: string;
  /** Where the rank counts what the time of its steps goes to; null where nobody asked. */
  readonly profile: StepProfileHandle | null;
  /** Has the rank record how it loads, in time since then: milliseconds of the Unix epoch. */
  readonly loadProfileOriginMs?: number;
}

/** What came of a call. */
export type Outcome<Value> =
  | { readonly ok: true; readonly value: Value }
  | { readonly ok: false; readonly error: TransferableError };

/** The service a rank's thread exposes. Nothing in it throws. */
export interface RankService {
  /** Loads plugins and weights. */
  load(init: RankInit): Promise<Outcome<RankReport>>;
  /** Serves steps, blocking the thread, until the channel says stop. After a failure the rank serves no more. */
  serve(): Promise<Outcome<null>>;
}

export function success<Value>(value: Value): Outcome<Value> {
  return { ok: true, value };
}

/** Packs an error; it names the rank it happened on from then on. */
export function failure(error: unknown, rank: number): Outcome<never> {
  const packed = toTransferable(error);
  return { ok: false, error: { ...packed, details: { rank, ...packed.details } } };
}
