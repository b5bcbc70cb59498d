/** Errors of collectives: all of them say which rank asked for what, as its how manieth request, and for which module. */
import { CollectiveError, type ErrorDetails } from "../core/errors.js";
import type { CollectiveRequest } from "./collective.js";
import { REQUEST_WORDS } from "./region.js";
import { describeRequest, forSite, writeRequest } from "./request.js";

/** The request that failed. */
export interface FailedRequest {
  readonly request: CollectiveRequest;
  /** The rank that reports it. */
  readonly rank: number;
  readonly worldSize: number;
  /** Requests of that rank so far, this one included. */
  readonly sequence: number;
}

export function collectiveError(
  code: string,
  { request, rank, worldSize, sequence }: FailedRequest,
  what: string,
  details: ErrorDetails = {},
): CollectiveError {
  const words = new Int32Array(REQUEST_WORDS);
  writeRequest(words, 0, request, rank);
  const { site = "" } = request;
  const subject = `rank ${rank}, request ${sequence} (${describeRequest(words, 0)}${forSite(site)})`;
  return new CollectiveError(code, `${subject}: ${what}`, {
    rank,
    worldSize,
    request: request.kind,
    sequence,
    site,
    ...details,
  });
}

/** The deadline of a rank that waits is over; `missing` are those it waits for, none when they came too late. */
export function collectiveTimeout(
  failed: FailedRequest,
  missing: readonly number[],
  timeoutMs: number,
  givenUpBy?: string,
): CollectiveError {
  const absent = missing.length === 0 ? "the last rank came too late" : `${nameRanks(missing)} did not arrive`;
  const waited =
    givenUpBy === undefined
      ? `expected ${failed.worldSize} ranks within ${timeoutMs} ms but ${absent}`
      : `given up by ${givenUpBy}, whose time was over: ${absent}`;
  return collectiveError("COLLECTIVE_TIMEOUT", failed, waited, { missingRanks: missing.join(","), timeoutMs });
}

/** `rank 3`, `ranks 1, 2` */
export function nameRanks(ranks: readonly number[]): string {
  return `${ranks.length === 1 ? "rank" : "ranks"} ${ranks.join(", ")}`;
}
