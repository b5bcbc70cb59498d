/** The thread of a rank that does nothing in a step but finish it; it ends when it is told to stop. */
import { workerData } from "node:worker_threads";
import { RankChannel, STEP_RUN, type StepChannelHandle } from "../../src/rank/step-channel.js";

interface Data {
  readonly handle: StepChannelHandle;
  readonly rank: number;
  readonly spinMs: number;
  /** One word a rank: the steps it ran. */
  readonly counts: Int32Array;
}

const { handle, rank, spinMs, counts }: Data = workerData;
const channel = new RankChannel(handle, rank, spinMs);
while (channel.waitForStep() === STEP_RUN) {
  Atomics.add(counts, rank, 1);
  channel.finishStep();
}
