/** Errors of ranks that ended, or got no further. */
import { nameRanks } from "../collectives/failure.js";
import { InternalError, RankError, reasonOf, type ShardloomError } from "../core/errors.js";

/** A thread ended that was to go on; `cause` is what it died of, where that is known. */
export function rankExited(rank: number, exitCode: number, cause?: unknown): RankError {
  const reason = cause === undefined ? "" : `: ${reasonOf(cause)}`;
  return new RankError(
    "RANK_EXITED",
    `expected the thread of rank ${rank} to go on but it ended with exit code ${exitCode}${reason}`,
    { rank, exitCode },
    { cause },
  );
}

/** For `timeoutMs` no rank read a byte and none became ready; `ranks` are those that are not. */
export function startTimeout(ranks: readonly number[], timeoutMs: number): RankError {
  return rankTimeout(ranks, timeoutMs, `expected all ranks to load but ${nameRanks(ranks)} got no further in`);
}

/** `ranks` did not finish a step. */
export function stepTimeout(ranks: readonly number[], timeoutMs: number): ShardloomError {
  if (ranks.length === 0) return new InternalError("a step timed out that every rank has finished");
  return rankTimeout(ranks, timeoutMs, `expected every rank to finish the step but ${nameRanks(ranks)} did not within`);
}

function rankTimeout(ranks: readonly number[], timeoutMs: number, what: string): RankError {
  const first = ranks[0];
  return new RankError("RANK_TIMEOUT", `${what} ${timeoutMs} ms`, {
    ...(first === undefined ? {} : { rank: first }),
    ranks: ranks.join(","),
    expected: timeoutMs,
  });
}
