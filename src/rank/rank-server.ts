/**
 * The life of a rank in its thread: load once, then serve steps until told to stop. What loading and a step consist of
 * is the program's business; threads and ports are that of whoever exposes the service.
 */
import { invariant } from "../core/errors.js";
import type { RankReport } from "./model-runner.js";
import { failure, type Outcome, type RankInit, type RankService, success } from "./rank-service.js";
import { RankChannel, STEP_RUN } from "./step-channel.js";

/** What a rank does. */
export interface RankProgram {
  /** Prepares the rank; `onProgress` is told the bytes of weights read so far. */
  load(init: RankInit, onProgress: (bytesRead: number) => void): Promise<LoadedRank>;
}

/** A rank that can run steps. */
export interface LoadedRank {
  readonly report: RankReport;
  /** Runs step `n`, counted from 0, in the arrays that are its, together with the other ranks; blocks. */
  runStep(n: number): void;
  /** Makes the other ranks leave the step: this one cannot go on. */
  abort(): void;
}

interface Serving {
  readonly loaded: LoadedRank;
  readonly channel: RankChannel;
  readonly rank: number;
}

/** The service of one rank. */
export function createRankService(program: RankProgram): RankService {
  let serving: Serving | undefined;
  return {
    async load(init): Promise<Outcome<RankReport>> {
      const { rank } = init;
      try {
        const channel = new RankChannel(init.channel, rank, init.spinMs);
        const loaded = await program.load(init, (bytes) => channel.reportLoaded(bytes));
        serving = { loaded, channel, rank };
        return success(loaded.report);
      } catch (error) {
        return failure(error, rank);
      }
    },
    async serve(): Promise<Outcome<null>> {
      invariant(serving, "a rank must be loaded before it serves");
      return serveSteps(serving);
    },
  };
}

function serveSteps({ loaded, channel, rank }: Serving): Outcome<null> {
  try {
    while (channel.waitForStep() === STEP_RUN) {
      loaded.runStep(channel.step);
      channel.finishStep();
    }
    return success(null);
  } catch (error) {
    // The other ranks first: they may be waiting for this one inside a collective. Then the coordinator, which learns
    // from the channel that the step is lost, and from the outcome why.
    loaded.abort();
    channel.fail();
    return failure(error, rank);
  }
}
