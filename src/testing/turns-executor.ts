/**
 * An executor whose ranks take turns in the calling thread: the same runners, layers and loaders as in production, any
 * number of ranks, no worker and no lock. Deterministic, and bit for bit what worker threads compute.
 */

import { checkSameVersions } from "../checkpoint/open-file.js";
import { sharedReadsInTurns } from "../checkpoint/shared-reads.js";
import type { Pass } from "../collectives/collective.js";
import type { CollectivePayload } from "../collectives/payload.js";
import { Turns, type TurnsObserver } from "../collectives/turns.js";
import { InternalError, withRank } from "../core/errors.js";
import type { Executor } from "../engine/executor.js";
import type { Kernels } from "../kernels/kernels.js";
import type { AllocatorFactory } from "../layers/model-memory.js";
import type { PlacementObserver } from "../layers/shard-placement.js";
import type { Registries } from "../loading/plugins.js";
import type { ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import { ModelRunner, type RankReport, type RunnerDependencies } from "../rank/model-runner.js";
import type { LoadDependencies } from "../rank/rank-model.js";
import type { RankOptions } from "../rank/rank-options.js";
import type { LogitsListener } from "../rank/sampler.js";
import { Step, type Steps } from "../rank/step.js";
import type { SimulatedFaults } from "./faults.js";

/** Hears what ranks do in a step, and when steps begin and end. */
export interface StepObserver extends TurnsObserver {
  startStep?(): void;
  /** Not called for a step that failed. */
  endStep?(): void;
}

/** Wraps a rank's pass through one step; what it yields is what the rank asks for. */
export type PassInterceptor = (pass: Pass, rank: number) => Pass;

/** Whatever may differ from production; all of it optional. */
export interface TurnsExecutorOptions {
  /** Order of each next round of turns; by rank unless told otherwise. */
  readonly nextOrder?: () => readonly number[];
  readonly observer?: StepObserver;
  readonly placements?: PlacementObserver;
  readonly intercept?: PassInterceptor;
  /** Where the tensors of a rank come from. */
  readonly memoryOf?: (rank: number) => AllocatorFactory;
  readonly onLogits?: LogitsListener;
  /** What goes wrong. */
  readonly faults?: SimulatedFaults;
}

export class TurnsExecutor implements Executor {
  readonly worldSize: number;
  readonly config: ModelConfig;
  readonly step: Step;
  readonly steps: Steps;
  readonly blockSize: number;
  readonly blocks: number;
  readonly maxModelLength: number;
  readonly reports: readonly RankReport[];
  /** In rank order. */
  readonly runners: readonly ModelRunner[];
  readonly #options: TurnsExecutorOptions;
  readonly #moveElements: boolean;
  readonly #payload: CollectivePayload;
  #failure: { readonly error: unknown } | undefined;

  private constructor(
    ranks: RankOptions,
    kernels: Kernels,
    step: Step,
    runners: readonly ModelRunner[],
    options: TurnsExecutorOptions,
  ) {
    this.worldSize = ranks.worldSize;
    this.config = selectFamily(ranks.description.config).parseConfig(ranks.description.config);
    this.step = step;
    this.steps = [step];
    this.blockSize = ranks.blockSize;
    this.blocks = ranks.blocks;
    this.maxModelLength = ranks.maxModelLength;
    this.runners = runners;
    this.reports = runners.map((runner) => runner.report);
    this.#options = options;
    this.#payload = ranks.collectivePayload ?? "f32";
    this.#moveElements = kernels.backend !== "shape-only";
  }

  /** Loads every rank, one after another in the order of their turns. Throws what ModelRunner.load throws, naming the rank. */
  static async create(
    ranks: RankOptions,
    registries: Registries,
    kernels: Kernels,
    options: TurnsExecutorOptions = {},
  ): Promise<TurnsExecutor> {
    const { nextOrder, faults } = options;
    const step = Step.create(ranks.limits);
    const runners = new Map<number, ModelRunner>();
    const order = nextOrder?.() ?? Array.from({ length: ranks.worldSize }, (_, rank) => rank);
    // A rank that is to fail over a tensor has to read it.
    const shared = ranks.worldSize > 1 && faults === undefined ? sharedReadsInTurns() : undefined;
    for (const rank of order) {
      const load = () =>
        ModelRunner.load(ranks, rank, {
          registries,
          kernels,
          steps: [step],
          shared,
          ...loadDependencies(rank, options),
        });
      try {
        const runner = faults === undefined ? await load() : await faults.load(rank, load);
        if (runner !== null) runners.set(rank, runner);
      } catch (error) {
        throw withRank(error, rank);
      }
    }
    faults?.allLoaded();
    if (runners.size !== ranks.worldSize || runners.size === 0) {
      throw new InternalError(
        `expected each of ${ranks.worldSize} ranks once but received the order ${order.join(", ")}`,
      );
    }
    const byRank = [...runners].toSorted(([a], [b]) => a - b).map(([, runner]) => runner);
    checkSameVersions(byRank.map(({ report }) => ({ name: `rank ${report.rank}`, files: report.files })));
    return new TurnsExecutor(ranks, kernels, step, byRank, options);
  }

  execute(): Promise<void> {
    try {
      this.runStep();
      return Promise.resolve();
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** The same at once. After a step has failed, every later call throws its error. */
  runStep(): void {
    if (this.#failure !== undefined) throw this.#failure.error;
    const { nextOrder, observer = {}, intercept = (pass: Pass) => pass, faults } = this.#options;
    try {
      observer.startStep?.();
      faults?.startStep();
      const intended = this.runners.map((runner, rank) => intercept(runner.runStep(), rank));
      const passes = faults === undefined ? intended : intended.map((pass, rank) => faults.pass(pass, rank));
      const turns = new Turns(passes, { observer, moveElements: this.#moveElements, payload: this.#payload });
      while (turns.round(nextOrder?.()) !== undefined);
      observer.endStep?.();
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

function loadDependencies(
  rank: number,
  { placements, memoryOf, onLogits, faults }: TurnsExecutorOptions,
): Partial<LoadDependencies & RunnerDependencies> {
  const memory = memoryOf?.(rank);
  return {
    ...(placements === undefined ? {} : { observer: placements }),
    ...(memory === undefined ? {} : { allocator: faults?.memory(rank, memory) ?? memory }),
    ...(onLogits === undefined ? {} : { onLogits }),
    ...(faults === undefined ? {} : { intercept: faults.checkpoint(rank) }),
  };
}
