/**
 * What the engine needs of the ranks: an executor runs steps. In production it is the coordinator with its worker
 * threads; in tests, ranks that take turns in one thread. The engine knows neither.
 */
import type { StepProfile } from "../core/step-profile.js";
import type { ModelConfig } from "../models/model.js";
import type { RankReport } from "../rank/model-runner.js";
import type { Steps } from "../rank/step.js";

export interface Executor {
  readonly worldSize: number;
  readonly config: ModelConfig;
  /**
   * The arrays the engine fills before `execute`, and reads results from after it: the n-th call runs what is in
   * `steps[n % steps.length]`.
   */
  readonly steps: Steps;
  /** Tokens a block of KV cache holds, and how many blocks there are. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Longest sequence, prompt and answer together. */
  readonly maxModelLength: number;
  /** Loading, rank by rank. */
  readonly reports: readonly RankReport[];
  /**
   * Runs the step that has been written, after those before it. Resolves when every rank is done with the arrays. Rejects
   * with RankError or CollectiveError when a rank failed; the executor is then unusable and every later call rejects too.
   * As many calls at a time as there are arrays. It keeps the process alive, and settles within a bounded time, also when
   * `close` is called meanwhile.
   */
  execute(): Promise<void>;
  /** Where the time of the steps so far went; absent or null where nobody counts. To be called between steps. */
  stepProfile?(): StepProfile | null;
  /** Stops all ranks. Resolves when nothing of them is left; may be called again. */
  close(): Promise<void>;
}
