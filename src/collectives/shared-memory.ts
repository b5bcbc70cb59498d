/**
 * Collectives between threads over one shared region. `createSharedMemoryCollective` attaches a rank; the addon or its
 * TypeScript twin carries requests out; this file checks them, and turns what went wrong into errors that name the rank,
 * the request and who is missing or differs. After the first error the region stays poisoned: every later call of every
 * rank throws at once.
 */
import { availableParallelism } from "node:os";
import { type CollectiveError, type ErrorDetails, InternalError } from "../core/errors.js";
import { nativeAddon } from "../core/native-addon.js";
import { AtomicsEngine, poisonRegion } from "./atomics-engine.js";
import { publishSite, siteOf } from "./call-site.js";
import type { Collective, CollectiveRequest } from "./collective.js";
import { collectiveError, collectiveTimeout, type FailedRequest } from "./failure.js";
import { NativeEngine } from "./native-engine.js";
import {
  type CollectiveRegion,
  checkRegion,
  HEADER,
  RANK_LINE,
  rankLine,
  requestAt,
  STATUS,
  wordsOf,
} from "./region.js";
import { checkContribution, checkRequest, describeRequest, forSite, sameRequest } from "./request.js";

/**
 * How a rank waits: it spins, then yields its core, each for so long, then parks until it is woken. It spins for less
 * while that turns out to be in vain. The TypeScript twin cannot yield and parks at once instead.
 */
export interface WaitingPolicy {
  readonly spinMicros: number;
  readonly yieldMicros: number;
}

/**
 * The policy for so many threads that compute at the same time on so many cores. Spinning is fastest while every thread
 * has a core of its own; with fewer cores it keeps the very thread that it waits for from running, and every collective
 * then takes as long as the spinning.
 *
 * Nobody yields: where another thread wants the core, a yield gives a whole slice of time away, milliseconds, for a wait of
 * microseconds. A thread that parks instead runs again as soon as it is woken. (SmolLM2-135M on two ranks and two cores, with
 * builds running beside: 40 tokens/s with 200 us of yielding, 120 to 180 without. Three ranks on two cores, Linux 6.18: 47 to
 * 155 with 100 us of yielding, 180 to 240 without.)
 */
export function waitingPolicy(threads: number, cores = availableParallelism()): WaitingPolicy {
  return { spinMicros: threads <= cores ? 200 : 0, yieldMicros: 0 };
}

export interface SharedMemoryOptions {
  /** How long a rank waits for the others in one phase of a request, in milliseconds. */
  readonly timeoutMs: number;
  /**
   * The addon (true) or the TypeScript twin; by default the addon if it is loaded. All ranks alike, and as the kernels
   * that bound the operands: the addon needs their handles.
   */
  readonly native?: boolean;
  /** By default that of one thread a rank on all cores that this process may use. */
  readonly waiting?: WaitingPolicy;
}

const MAX_TIMEOUT_MS = 2 ** 31 - 1;

interface Engine {
  run(request: CollectiveRequest): number;
}

/**
 * Attaches the calling thread to a region as one of its ranks; at most one thread at a time for a rank. Throws
 * InternalError when the region is none, the rank is not in it, or the addon is asked for but not loaded.
 *
 * A thread that waits in the addon notices `worker.terminate()` only when it returns: abort the region first.
 */
export function createSharedMemoryCollective(
  region: CollectiveRegion,
  rank: number,
  options: SharedMemoryOptions,
): Collective {
  checkRegion(region);
  if (!Number.isInteger(rank) || rank < 0 || rank >= region.worldSize) {
    throw new InternalError(`expected a rank below ${region.worldSize} but received ${rank}`, { rank });
  }
  const { timeoutMs, waiting = waitingPolicy(region.worldSize) } = options;
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > MAX_TIMEOUT_MS) {
    throw new InternalError(`expected a time-out of 1 to ${MAX_TIMEOUT_MS} ms but received ${timeoutMs}`, { rank });
  }
  const words = wordsOf(region);
  words[rankLine(rank) + RANK_LINE.timeoutMs] = timeoutMs;
  words[rankLine(rank) + RANK_LINE.spinMicros] = waiting.spinMicros;
  words[rankLine(rank) + RANK_LINE.yieldMicros] = waiting.yieldMicros;
  words[rankLine(rank) + RANK_LINE.spinBudget] = waiting.spinMicros;
  return new SharedMemoryCollective(region, rank, createEngine(region, rank, options.native), timeoutMs);
}

function createEngine(region: CollectiveRegion, rank: number, native: boolean | undefined): Engine {
  const status = nativeAddon();
  if (native === false || (native === undefined && !status.loaded)) return new AtomicsEngine(region, rank);
  if (!status.loaded) throw new InternalError(`native collectives need the addon: ${status.reason}`, { rank });
  return new NativeEngine(status.addon, region, rank);
}

/**
 * Poisons a region from any thread: ranks that wait wake and throw `COLLECTIVE_ABORTED`, later calls throw at once.
 * `rank` is named in their errors; leave it out where the caller is no rank. Does nothing to a region already poisoned.
 */
export function abortRegion(region: CollectiveRegion, rank?: number): void {
  poisonRegion(wordsOf(region), STATUS.aborted, rank ?? -1);
  const status = nativeAddon();
  if (!status.loaded) return;
  const { buffer, base, capacity } = region.memory;
  status.addon.wakeCollectives(new Uint8Array(buffer, base, capacity));
}

class SharedMemoryCollective implements Collective {
  readonly rank: number;
  readonly worldSize: number;
  readonly #region: CollectiveRegion;
  readonly #words: Int32Array;
  readonly #engine: Engine;
  readonly #timeoutMs: number;
  readonly replayed?: NonNullable<Collective["replayed"]>;
  /** Requests so far, the current one included: equal on all ranks. */
  #sequence = 0;

  constructor(region: CollectiveRegion, rank: number, engine: Engine, timeoutMs: number) {
    this.rank = rank;
    this.worldSize = region.worldSize;
    this.#region = region;
    this.#words = wordsOf(region);
    this.#engine = engine;
    this.#timeoutMs = timeoutMs;
    if (engine instanceof NativeEngine) this.replayed = (requests, outcome) => this.#replayed(requests, outcome);
  }

  execute(request: CollectiveRequest): void {
    checkRequest(request, this.worldSize);
    if (request.kind === "allGather") checkContribution(request, this.rank);
    this.#sequence++;
    if (Atomics.load(this.#words, HEADER.poison) !== 0) throw this.#poisonedEarlier(request);
    const status = this.#engine.run(request);
    if (status !== STATUS.done) throw this.#failure(status, request);
  }

  abort(): void {
    abortRegion(this.#region, this.rank);
  }

  /** `outcome` as Kernels.record says. */
  #replayed(requests: readonly CollectiveRequest[], outcome: number): void {
    const failed = outcome === STATUS.done ? undefined : requests[outcome >> 8];
    this.#sequence += failed === undefined ? requests.length : (outcome >> 8) + 1;
    if (failed !== undefined) throw this.#failure(outcome & 0xff, failed);
  }

  #failure(status: number, request: CollectiveRequest): CollectiveError {
    if (status === STATUS.givenUp) return this.#poisonedEarlier(request);
    if (status === STATUS.timedOut) return this.#timeout(request);
    if (status === STATUS.mismatch) return this.#mismatch(request);
    return this.#error("COLLECTIVE_ABORTED", request, `aborted by ${this.#culprit()}`);
  }

  #timeout(request: CollectiveRequest): CollectiveError {
    const givenUpBy = this.#culpritRank() === this.rank ? undefined : this.#culprit();
    return collectiveTimeout(this.#failed(request), this.#missingRanks(), this.#timeoutMs, givenUpBy);
  }

  #mismatch(request: CollectiveRequest): CollectiveError {
    const words = this.#words;
    publishSite(this.#region, this.rank, request.site ?? "");
    const phase = words[rankLine(this.rank) + RANK_LINE.arrived] ?? 0;
    const own = requestAt(this.rank, phase);
    for (let other = 0; other < this.worldSize; other++) {
      const theirs = requestAt(other, phase);
      if (sameRequest(words, own, theirs)) continue;
      const otherSite = siteOf(this.#region, other);
      const expected = `${describeRequest(words, own)}${forSite(request.site ?? "")}`;
      const received = `${describeRequest(words, theirs)}${forSite(otherSite)}`;
      const what = `expected ${expected} from every rank but rank ${other} asks for ${received}`;
      return this.#error("COLLECTIVE_MISMATCH", request, what, { expected, received, otherRank: other, otherSite });
    }
    return this.#error(
      "COLLECTIVE_MISMATCH",
      request,
      `given up by ${this.#culprit()}: ranks ask for different things`,
    );
  }

  #poisonedEarlier(request: CollectiveRequest): CollectiveError {
    const status = Atomics.load(this.#words, HEADER.poison) & 0xff;
    const [code, why] =
      status === STATUS.timedOut
        ? ["COLLECTIVE_TIMEOUT", "ran out of time"]
        : status === STATUS.mismatch
          ? ["COLLECTIVE_MISMATCH", "found ranks asking for different things"]
          : ["COLLECTIVE_ABORTED", "aborted"];
    return this.#error(code, request, `the group was given up: ${this.#culprit()} ${why} in an earlier call`);
  }

  #error(code: string, request: CollectiveRequest, what: string, details: ErrorDetails = {}): CollectiveError {
    return collectiveError(code, this.#failed(request), what, details);
  }

  #failed(request: CollectiveRequest): FailedRequest {
    return { request, rank: this.rank, worldSize: this.worldSize, sequence: this.#sequence };
  }

  /** Ranks behind the phase that this rank has arrived at. */
  #missingRanks(): number[] {
    const words = this.#words;
    const arrivedAt = (rank: number) => Atomics.load(words, rankLine(rank) + RANK_LINE.arrived);
    const phase = arrivedAt(this.rank);
    const ranks = Array.from({ length: this.worldSize }, (_, rank) => rank);
    return ranks.filter((rank) => ((arrivedAt(rank) - phase) | 0) < 0);
  }

  /** Who poisoned the region; -1 for no rank. */
  #culpritRank(): number {
    return (Atomics.load(this.#words, HEADER.poison) >>> 8) - 1;
  }

  #culprit(): string {
    const rank = this.#culpritRank();
    return rank < 0 ? "the coordinator" : `rank ${rank}`;
  }
}
