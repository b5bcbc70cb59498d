/** The ranks of a simulation and those who watch them: what Simulation and ShapeSimulation have in common. */
import type { CollectiveRequest } from "../collectives/collective.js";
import { checkSameResults } from "../collectives/verified.js";
import { type CoordinatorTimeouts, timeoutsWithDefaults } from "../coordinator/timeouts.js";
import { checkFaults, type FaultSchedule } from "../rank/faults.js";
import { type GroupOwnership, groupOwnership } from "../rank/ownership.js";
import type { LogitsListener } from "../rank/sampler.js";
import { STEP_SEQUENCES, STEP_TOKENS } from "../rank/step.js";
import { AgreementMonitor } from "./agreement.js";
import { type CollectiveTrace, type StepRecord, TraceRecorder } from "./collective-trace.js";
import { SimulatedFaults } from "./faults.js";
import { simulatedMemory } from "./memory.js";
import { PlacementRecorder } from "./placement-recorder.js";
import type { Preparation } from "./preparation.js";
import { type SimulatedKernels, simulatedKernels } from "./simulated-kernels.js";
import { SimulatedRank } from "./simulated-rank.js";
import { type TurnOrder, turnOrder } from "./turn-order.js";
import { type PassInterceptor, TurnsExecutor } from "./turns-executor.js";

export interface WatchedRanksOptions {
  readonly kernels: "reference" | "native" | "shape-only";
  readonly order: TurnOrder;
  readonly memoryLimitBytes?: number | undefined;
  readonly intercept?: PassInterceptor | undefined;
  readonly onLogits?: LogitsListener | undefined;
  readonly faults?: FaultSchedule | undefined;
  readonly timeouts?: Partial<CoordinatorTimeouts> | undefined;
  readonly verifyCollectives?: boolean | undefined;
}

export class WatchedRanks {
  readonly executor: TurnsExecutor;
  readonly ranks: readonly SimulatedRank[];
  readonly placements: PlacementRecorder;
  readonly agreement: AgreementMonitor;
  readonly #recorder: TraceRecorder;
  readonly #kernels: SimulatedKernels;
  #ownership: GroupOwnership | undefined;

  private constructor(
    executor: TurnsExecutor,
    placements: PlacementRecorder,
    agreement: AgreementMonitor,
    recorder: TraceRecorder,
    kernels: SimulatedKernels,
  ) {
    this.executor = executor;
    this.ranks = executor.runners.map(({ loaded }) => new SimulatedRank(loaded));
    this.placements = placements;
    this.agreement = agreement;
    this.#recorder = recorder;
    this.#kernels = kernels;
  }

  /** Loads all ranks. Nothing is left bound after an error. */
  static async load({ ranks, registries, seed }: Preparation, options: WatchedRanksOptions): Promise<WatchedRanks> {
    const { worldSize } = ranks;
    const shapeOnly = options.kernels === "shape-only";
    const nextOrder = turnOrder(options.order, worldSize, seed);
    const kernels = simulatedKernels(options.kernels);
    const placements = new PlacementRecorder();
    const recorder = new TraceRecorder(worldSize, ranks.collectivePayload);
    const { intercept, onLogits, verifyCollectives = false } = options;
    const timeouts = timeoutsWithDefaults(options.timeouts);
    const schedule = checkFaults(options.faults ?? [], worldSize);
    const faults = schedule.length === 0 ? undefined : new SimulatedFaults(schedule, worldSize, timeouts);
    let collectives = 0;
    try {
      const agreement = new AgreementMonitor();
      const executor = await TurnsExecutor.create(ranks, registries, kernels.kernels, {
        nextOrder,
        placements: placements.observer,
        memoryOf: (rank) => simulatedMemory(rank, shapeOnly, options.memoryLimitBytes),
        observer: {
          startStep: () => recorder.startStep(),
          advanced: (rank, elapsedMs) => recorder.advanced(rank, elapsedMs),
          asked: (requests: readonly CollectiveRequest[]) => faults?.asked(requests),
          carriedOut: (requests: readonly CollectiveRequest[]) => {
            recorder.carriedOut(requests);
            if (shapeOnly) return;
            collectives++;
            faults?.carriedOut(requests);
            if (verifyCollectives) checkSameResults(requests, collectives);
            const { step, sequence } = recorder;
            agreement.check(requests, step, sequence, executor.step.views.header[STEP_TOKENS] ?? 0);
          },
          endStep: () => {
            const { header } = executor.step.views;
            recorder.endStep(header[STEP_TOKENS] ?? 0, header[STEP_SEQUENCES] ?? 0);
          },
        },
        ...(intercept === undefined ? {} : { intercept }),
        ...(onLogits === undefined ? {} : { onLogits }),
        ...(faults === undefined ? {} : { faults }),
      });
      agreement.watch(executor.runners.map(({ loaded }) => loaded.model));
      return new WatchedRanks(executor, placements, agreement, recorder, kernels);
    } catch (error) {
      kernels.release();
      throw error;
    }
  }

  get trace(): CollectiveTrace {
    const parameterBytes = this.ranks.map(({ ownership }) => ownership.parameterBytes);
    return { worldSize: this.ranks.length, parameterBytes, steps: this.#recorder.steps };
  }

  get lastStep(): StepRecord | undefined {
    return this.#recorder.steps.at(-1);
  }

  get ownership(): GroupOwnership {
    this.#ownership ??= groupOwnership(this.ranks.map(({ ownership }) => ownership));
    return this.#ownership;
  }

  release(): void {
    this.#kernels.release();
  }
}
