/**
 * An executor whose ranks take turns in the calling thread: the same runners, layers and loaders as in production, any
 * number of ranks, no worker and no lock. Deterministic, and bit for bit what worker threads compute.
 */
import { driveInTurns } from "../collectives/turns.js";
import { InternalError } from "../core/errors.js";
import type { Executor } from "../engine/executor.js";
import type { Kernels } from "../kernels/kernels.js";
import type { Registries } from "../loading/plugins.js";
import type { ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import { ModelRunner, type RankReport } from "../rank/model-runner.js";
import type { RankOptions } from "../rank/rank-options.js";
import { Step } from "../rank/step.js";

export class TurnsExecutor implements Executor {
  readonly worldSize: number;
  readonly config: ModelConfig;
  readonly step: Step;
  readonly blockSize: number;
  readonly blocks: number;
  readonly maxModelLength: number;
  readonly reports: readonly RankReport[];
  /** In rank order. */
  readonly runners: readonly ModelRunner[];

  private constructor(options: RankOptions, step: Step, runners: readonly ModelRunner[]) {
    this.worldSize = options.worldSize;
    this.config = selectFamily(options.description.config).parseConfig(options.description.config);
    this.step = step;
    this.blockSize = options.blockSize;
    this.blocks = options.blocks;
    this.maxModelLength = options.maxModelLength;
    this.runners = runners;
    this.reports = runners.map((runner) => runner.report);
  }

  /** Loads every rank, one after another. Throws what ModelRunner.load throws. */
  static async create(options: RankOptions, registries: Registries, kernels: Kernels): Promise<TurnsExecutor> {
    const step = Step.create(options.limits);
    const runners: ModelRunner[] = [];
    for (let rank = 0; rank < options.worldSize; rank++) {
      runners.push(await ModelRunner.load(options, rank, { registries, kernels, step }));
    }
    if (runners.length === 0) throw new InternalError("an executor needs at least one rank");
    return new TurnsExecutor(options, step, runners);
  }

  execute(): Promise<void> {
    try {
      driveInTurns(this.runners.map((runner) => runner.runStep()));
      return Promise.resolve();
    } catch (error) {
      return Promise.reject(error);
    }
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
