/**
 * Drives the forward passes of all ranks in one thread: each runs until it yields a request, then the request is carried
 * out for all of them at once. Every element goes through the same operations in the same order as on real threads
 * (payload.ts), so the results are the same bit for bit, in whatever order the ranks take their turns.
 */
import { CollectiveError, InternalError, withRank } from "../core/errors.js";
import type { AllGather, AllReduce, Broadcast, CollectiveRequest, Pass } from "./collective.js";
import {
  addElements,
  type CollectivePayload,
  copyColumns,
  copyElements,
  payloadOf,
  roundInPlace,
  unifyNaNs,
} from "./payload.js";
import { REQUEST_WORDS } from "./region.js";
import { checkContribution, checkRequest, describeRequest, forSite, sameRequest, writeRequest } from "./request.js";

/**
 * Runs one pass a rank to the end, in turns, and returns their results by rank.
 *
 * Throws CollectiveError `COLLECTIVE_MISMATCH` when the passes yield different requests, or the same for different
 * modules, naming both. An error that a pass throws is thrown on, with the rank in its details. Either way all passes
 * are closed first.
 */
export function driveInTurns<Result>(passes: readonly Pass<Result>[], options: TurnsOptions = {}): Result[] {
  const turns = new Turns(passes, options);
  while (turns.round() !== undefined);
  return turns.results();
}

/** Hears what ranks in turns do. One request a rank, in rank order. */
export interface TurnsObserver {
  /** A rank ran until it asked for a collective, or to its end, and took so long. */
  advanced?(rank: number, elapsedMs: number): void;
  /** All ranks ask for the same; nothing has been moved yet. */
  asked?(requests: readonly CollectiveRequest[]): void;
  /** What they asked for is done. */
  carriedOut?(requests: readonly CollectiveRequest[]): void;
}

export interface TurnsOptions {
  readonly observer?: TurnsObserver;
  /** False where operands are virtual: requests are checked and compared, and nothing is moved. */
  readonly moveElements?: boolean;
  /** What all-reduces carry, with the rounding that real threads do; f32 by default. */
  readonly payload?: CollectivePayload | undefined;
}

interface Seat<Result> {
  readonly pass: Pass<Result>;
  request: CollectiveRequest | undefined;
  result: { readonly value: Result } | undefined;
}

/** The same, one collective at a time. */
export class Turns<Result> {
  readonly #seats: readonly Seat<Result>[];
  readonly #byRank: readonly number[];
  readonly #observer: TurnsObserver;
  readonly #moveElements: boolean;
  readonly #payload: CollectivePayload;
  /** Collectives so far, the current one included: equal on all ranks. */
  #sequence = 0;

  constructor(passes: readonly Pass<Result>[], options: TurnsOptions = {}) {
    this.#observer = options.observer ?? {};
    this.#moveElements = options.moveElements ?? true;
    this.#payload = options.payload ?? "f32";
    this.#seats = passes.map((pass) => ({ pass, request: undefined, result: undefined }));
    this.#byRank = passes.map((_, rank) => rank);
  }

  /**
   * Gives every rank one turn, in the given order, then carries out what all of them asked for. Returns rank 0's
   * request, or undefined when all passes have ended. Throws as driveInTurns does.
   */
  round(order: readonly number[] = this.#byRank): CollectiveRequest | undefined {
    try {
      if (order.length !== this.#seats.length || new Set(order).size !== order.length) {
        throw new InternalError(
          `expected each of ${this.#seats.length} ranks once but received the order ${order.join(", ")}`,
        );
      }
      for (const rank of order) this.#advance(rank);
      this.#sequence++;
      const asked = this.#seats.map((seat) => seat.request);
      const requests = agreedRequests(asked, this.#sequence);
      if (requests.length === 0) return undefined;
      for (const request of requests) checkRequest(request, requests.length);
      this.#observer.asked?.(requests);
      if (this.#moveElements) carryOut(requests, this.#payload);
      this.#observer.carriedOut?.(requests);
      return requests[0];
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** What the passes returned, by rank. Throws InternalError while one of them has not ended. */
  results(): Result[] {
    return this.#seats.map((seat, rank) => {
      if (seat.result === undefined) throw new InternalError(`rank ${rank} has not ended its pass`, { rank });
      return seat.result.value;
    });
  }

  /** Ends all passes where they stand; their `finally` blocks run. */
  close(): void {
    for (const seat of this.#seats) {
      const pass: Generator<CollectiveRequest, unknown, void> = seat.pass;
      try {
        pass.return(undefined);
      } catch {
        // Something went wrong while a pass cleaned up: the error that made us close it is the one to report.
      }
    }
  }

  #advance(rank: number): void {
    const seat = this.#seats[rank];
    if (seat === undefined) throw new InternalError(`no rank ${rank} among ${this.#seats.length}`);
    if (seat.result !== undefined) return;
    const started = performance.now();
    try {
      const step = seat.pass.next();
      this.#observer.advanced?.(rank, performance.now() - started);
      seat.request = step.done === true ? undefined : step.value;
      if (step.done === true) seat.result = { value: step.value };
    } catch (error) {
      throw withRank(error, rank);
    }
  }
}

/** One request a rank, all asking for the same; none when all passes have ended. */
function agreedRequests(asked: readonly (CollectiveRequest | undefined)[], sequence: number): CollectiveRequest[] {
  // A pass that has ended leaves its words zero, which no request has.
  const words = new Int32Array(asked.length * REQUEST_WORDS);
  asked.forEach((request, rank) => {
    if (request !== undefined) writeRequest(words, rank * REQUEST_WORDS, request, rank);
  });
  const [first] = asked;
  const other = asked.findIndex((request, rank) => {
    return !sameRequest(words, 0, rank * REQUEST_WORDS) || request?.site !== first?.site;
  });
  if (other < 0) return asked.filter((request) => request !== undefined);
  const expected = `${describeRequest(words, 0)}${forSite(first?.site ?? "")}`;
  const received = `${describeRequest(words, other * REQUEST_WORDS)}${forSite(asked[other]?.site ?? "")}`;
  throw new CollectiveError(
    "COLLECTIVE_MISMATCH",
    `request ${sequence}: expected the same of every rank but rank 0 asks for ${expected} and rank ${other} for ${received}`,
    {
      rank: 0,
      worldSize: asked.length,
      sequence,
      expected,
      received,
      otherRank: other,
      site: first?.site,
      otherSite: asked[other]?.site,
    },
  );
}

function carryOut(requests: readonly CollectiveRequest[], payload: CollectivePayload): void {
  const reduces = requests.filter((request) => request.kind === "allReduce");
  if (reduces.length > 0) allReduce(reduces, payload);
  const gathers = requests.filter((request) => request.kind === "allGather");
  if (gathers.length > 0) allGather(gathers);
  const broadcasts = requests.filter((request) => request.kind === "broadcast");
  if (broadcasts.length > 0) broadcast(broadcasts);
}

function allReduce(requests: readonly AllReduce[], payload: CollectivePayload): void {
  const [first, ...others] = requests;
  if (first === undefined || others.length === 0) return;
  if (payload === "bf16") for (const { data } of requests) roundInPlace(payloadOf(data).bits, first.count);
  const sum = payloadOf(first.data);
  for (const { data } of others) addElements(sum.f32, 0, payloadOf(data).f32, 0, first.count);
  unifyNaNs(sum, 0, first.count);
  for (const { data } of others) copyElements(payloadOf(data).bits, 0, sum.bits, 0, first.count);
}

function allGather(requests: readonly AllGather[]): void {
  let offset = 0;
  requests.forEach((from, rank) => {
    checkContribution(from, rank);
    const width = from.widths[rank] ?? 0;
    const source = payloadOf(from.data).bits;
    for (const { out } of requests) {
      copyColumns(payloadOf(out).bits, out.columns, offset, source, from.data.columns, width, from.rows);
    }
    offset += width;
  });
}

function broadcast(requests: readonly Broadcast[]): void {
  const source = requests.find(({ root }, rank) => rank === root);
  if (source === undefined) return;
  for (const { data } of requests) {
    if (data !== source.data) copyElements(payloadOf(data).bits, 0, payloadOf(source.data).bits, 0, source.count);
  }
}
