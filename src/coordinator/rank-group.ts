/**
 * All ranks as one: they become ready together, and when one of them fails, all of them end. Of the errors that follow
 * from one failure the group finds the one that caused the others, and keeps it.
 */
import { checkSameVersions } from "../checkpoint/open-file.js";
import { CollectiveError, RankError, reasonOf, ShardloomError } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import type { RankReport } from "../rank/model-runner.js";
import type { RankInit } from "../rank/rank-service.js";
import { Conditions } from "./conditions.js";
import { RankThread, type RankThreadObserver } from "./rank-thread.js";
import { StartedThread, type ThreadEntry } from "./started-thread.js";

/** How long the group waits for a better explanation after an error that only says that another rank was missing. */
const EXPLANATION_MS = 1000;

export interface RankGroupOptions {
  /** What runs in the thread of a rank. */
  readonly thread: ThreadEntry;
  /** How long `end` waits: for the ranks to leave their loops, and then for their threads to be gone. */
  readonly closeTimeoutMs: number;
  readonly logger: Logger;
  /** Makes ranks leave a step in progress, and the coordinator stop waiting for it. Called when a rank failed. */
  interrupt(): void;
  /** Called when the group has ended, however it did. */
  ended(): void;
}

export class RankGroup {
  readonly #options: RankGroupOptions;
  readonly #threads: RankThread[] = [];
  readonly #reports: RankReport[] = [];
  readonly #conditions = new Conditions();
  readonly #errors: ShardloomError[] = [];
  #failure: ShardloomError | null = null;
  #explanation: NodeJS.Timeout | undefined;
  #end: Promise<void> | undefined;

  constructor(options: RankGroupOptions) {
    this.#options = options;
  }

  /** The error that ended the group; null while none has. */
  get failure(): ShardloomError | null {
    return this.#failure;
  }

  /** Ranks that are not ready yet. */
  get startingRanks(): readonly number[] {
    return this.#ranksThat((thread) => thread.state === "starting");
  }

  /**
   * Starts one thread a rank, where it was not `started` before, and has them load. Resolves when all of them serve steps;
   * from then on they do not keep the process alive. Rejects with the error of the rank that failed first, when nothing of
   * any thread is left.
   */
  async start(inits: readonly RankInit[], started: readonly StartedThread[] = []): Promise<readonly RankReport[]> {
    try {
      for (const thread of started) this.#threads.push(new RankThread(thread, this.#observer()));
      for (const { rank, plugins } of inits.slice(started.length)) {
        this.#threads.push(new RankThread(new StartedThread(rank, this.#options.thread, plugins), this.#observer()));
      }
      for (const [i, thread] of this.#threads.entries()) {
        const init = inits[i];
        if (init !== undefined) thread.load(init);
      }
    } catch (error) {
      this.fail(error instanceof RankError ? error : startFailure(error));
    }
    await this.#conditions.until(() => this.#failure !== null || this.#reports.length === inits.length);
    this.#checkFiles();
    if (this.#failure !== null) {
      await this.#endLogged();
      throw this.#failure;
    }
    for (const thread of this.#threads) {
      thread.serve();
      thread.holdProcess(false);
    }
    return this.#reports.toSorted((a, b) => a.rank - b.rank);
  }

  /** Ranks that opened different versions of a file have shards of different models. */
  #checkFiles(): void {
    if (this.#failure !== null) return;
    try {
      const reports = this.#reports.toSorted((a, b) => a.rank - b.rank);
      checkSameVersions(reports.map(({ rank, files }) => ({ name: `rank ${rank}`, files })));
    } catch (error) {
      this.fail(error instanceof ShardloomError ? error : startFailure(error));
    }
  }

  /** Ends all ranks because of an error that the group could not know of. The first one stands. */
  fail(error: ShardloomError): void {
    if (this.#failure !== null || this.#end !== undefined) return;
    this.#failure = error;
    this.#options.interrupt();
    void this.#endLogged();
    this.#conditions.changed();
  }

  /**
   * The error of a failure that a rank has signalled, as soon as it is known which one; `suspect` is blamed when no
   * error arrives.
   */
  async awaitFailure(suspect: number | null): Promise<ShardloomError> {
    const settled = (): boolean => this.#failure !== null || this.#end !== undefined;
    if (!(await this.#conditions.until(settled, 2 * EXPLANATION_MS))) this.fail(unexplained(suspect));
    return this.#failure ?? ranksClosed();
  }

  /**
   * Ends all threads: waits for ranks that serve to leave their loops (they must have been told to), then terminates
   * them. Resolves when all are gone; may be called again. Throws RankError `RANK_NOT_STOPPED` when one is still there
   * after the deadline.
   */
  end(): Promise<void> {
    if (this.#end === undefined) {
      this.#end = this.#endThreads();
      this.#conditions.changed();
    }
    return this.#end;
  }

  async #endThreads(): Promise<void> {
    const { closeTimeoutMs } = this.#options;
    clearTimeout(this.#explanation);
    for (const thread of this.#threads) thread.holdProcess(true);
    // After a failure nobody is asked politely: a rank may hang, and the others have nothing left to finish.
    const patienceMs = this.#failure === null ? closeTimeoutMs : 0;
    await this.#conditions.until(
      () => this.#ranksThat((thread) => thread.state === "serving").length === 0,
      patienceMs,
    );
    for (const thread of this.#threads) thread.terminate();
    const gone = await this.#conditions.until(() => this.#remaining().length === 0, closeTimeoutMs);
    this.#options.ended();
    if (gone) return;
    for (const thread of this.#threads) thread.holdProcess(false);
    const ranks = this.#remaining().join(", ");
    throw new RankError(
      "RANK_NOT_STOPPED",
      `expected the threads of all ranks to end within ${closeTimeoutMs} ms but rank ${ranks} is still in native code`,
      { ranks, expected: closeTimeoutMs },
    );
  }

  async #endLogged(): Promise<void> {
    try {
      await this.end();
    } catch (error) {
      this.#options.logger.error({ err: error }, "a rank that failed did not end");
    }
  }

  #remaining(): readonly number[] {
    return this.#ranksThat((thread) => thread.state !== "gone");
  }

  #ranksThat(predicate: (thread: RankThread) => boolean): readonly number[] {
    return this.#threads.filter(predicate).map((thread) => thread.rank);
  }

  #observer(): RankThreadObserver {
    return {
      ready: (report) => {
        this.#reports.push(report);
        this.#conditions.changed();
      },
      stopped: () => this.#conditions.changed(),
      failed: (error, rank) => this.#failed(error, rank),
      exited: () => this.#conditions.changed(),
    };
  }

  /**
   * A rank failed. When one rank fails in a step, the others fail too, in their collectives, and their errors may
   * arrive first. So an error that only tells of the absence of another rank has to wait for a better one.
   */
  #failed(error: ShardloomError, rank: number): void {
    this.#conditions.changed();
    if (this.#failure !== null || this.#end !== undefined) return;
    this.#options.logger.debug({ err: error, rank }, "a rank failed");
    this.#errors.push(error);
    if (isConsequence(error) && this.#ranksThat((thread) => thread.state === "serving").length > 0) {
      this.#options.interrupt();
      this.#explanation ??= setTimeout(() => this.#decide(), EXPLANATION_MS);
    } else {
      this.#decide();
    }
  }

  #decide(): void {
    const cause =
      this.#errors.find((error) => !isConsequence(error)) ?? this.#errors.find(isTimeout) ?? this.#errors[0];
    if (cause !== undefined) this.fail(cause);
  }
}

const isTimeout = (error: ShardloomError): boolean => error.code === "COLLECTIVE_TIMEOUT";

function isConsequence(error: ShardloomError): boolean {
  return error instanceof CollectiveError && (error.code === "COLLECTIVE_ABORTED" || isTimeout(error));
}

/** What a call finds after `end`. */
export function ranksClosed(): RankError {
  return new RankError("RANKS_CLOSED", "expected running ranks but they were closed");
}

function unexplained(suspect: number | null): RankError {
  const who = suspect === null ? "a rank" : `rank ${suspect}`;
  return new RankError(
    "RANK_FAILED",
    `expected every rank to finish the step but ${who} gave it up without saying why`,
    suspect === null ? {} : { rank: suspect },
  );
}

function startFailure(error: unknown): RankError {
  const message = reasonOf(error);
  return new RankError("RANK_START_FAILED", `cannot start the ranks: ${message}`, {}, { cause: error });
}
