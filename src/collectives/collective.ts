/**
 * Collectives: the only way ranks meet. A layer does not call a collective; its forward pass *yields* a request, and
 * whoever drives the pass carries it out (architecture: "one forward, two drivers"): in a worker thread a `Collective`
 * does so at once and blocks until the other ranks arrive; in one thread, ranks take turns (turns.ts).
 *
 * Requests are made once per layer and reused, so that a step allocates nothing. Every rank must yield the same
 * sequence of requests, equal in kind and size; implementations detect a difference.
 */
import type { Operand } from "../core/operand.js";

/** What all requests have. */
interface Request {
  /** Name of the module that asks, for traces and errors; the same on every rank. Set when the request is made. */
  readonly site?: string;
}

/** Sum of the first `count` f32 of `data` over all ranks, in rank order, in f32; in place, bit-identical on all ranks. */
export interface AllReduce extends Request {
  readonly kind: "allReduce";
  readonly data: Operand;
  count: number;
}

/**
 * Concatenation along columns: row m of `out` becomes row m of every rank's `data`, one after another. Rank r
 * contributes `widths[r]` columns: the first ones of its `data`. Same dtype (f32 or i32) everywhere.
 */
export interface AllGather extends Request {
  readonly kind: "allGather";
  readonly data: Operand;
  readonly out: Operand;
  readonly widths: readonly number[];
  rows: number;
}

/** The first `count` elements (f32 or i32) of `data` on rank `root` replace those of every rank. */
export interface Broadcast extends Request {
  readonly kind: "broadcast";
  readonly data: Operand;
  readonly root: number;
  count: number;
}

/** No rank goes on before all have arrived. */
export interface Barrier extends Request {
  readonly kind: "barrier";
}

export type CollectiveRequest = AllReduce | AllGather | Broadcast | Barrier;

/** A forward pass, or a part of one: yields requests, goes on when they have been carried out. */
export type Pass<Result = void> = Generator<CollectiveRequest, Result, void>;

/** One rank's end of a group that blocks the calling thread. */
export interface Collective {
  readonly rank: number;
  readonly worldSize: number;
  /**
   * Carries out a request together with the other ranks. Throws CollectiveError `COLLECTIVE_TIMEOUT` when a rank does
   * not arrive before the deadline, `COLLECTIVE_ABORTED` after `abort` by any rank, `COLLECTIVE_MISMATCH` when ranks
   * ask for different things.
   */
  execute(request: CollectiveRequest): void;
  /**
   * There if calls that are written down (`Kernels.record`) hold the requests that `execute` carries out meanwhile: says that
   * these requests have been carried out once more, with that outcome of `replay`. Throws as `execute` would have.
   */
  readonly replayed?: (requests: readonly CollectiveRequest[], outcome: number) => void;
  /** Makes every present and future `execute` of every rank throw: called by a rank that cannot go on. */
  abort(): void;
}

/** Drives a pass to its end in a thread of its own. The loop of production. */
export function drive<Result>(pass: Pass<Result>, collective: Collective): Result {
  for (;;) {
    const step = pass.next();
    if (step.done === true) return step.value;
    collective.execute(step.value);
  }
}
