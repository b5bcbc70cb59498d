/**
 * What one rank does: it runs steps on its part of the model. It knows no thread and no port: a pass yields at
 * collectives, and whoever drives it decides how ranks meet.
 */
import type { Collective, Pass } from "../collectives/collective.js";
import type { Kernels } from "../kernels/kernels.js";
import { type LoadDependencies, loadRankModel, type RankModel, type RankReport } from "./rank-model.js";
import type { RankOptions } from "./rank-options.js";
import { RecordedForward } from "./recorded-forward.js";
import { type LogitsListener, Sampler } from "./sampler.js";
import { STEP_OUTPUTS, type Steps, stepOf } from "./step.js";
import { StepInputs } from "./step-inputs.js";

export type { RankReport } from "./rank-model.js";

/** What a runner is given besides the model. */
export interface RunnerDependencies {
  readonly kernels: Kernels;
  /** The arrays steps come in, in turn, shared by all ranks. */
  readonly steps: Steps;
  readonly onLogits?: LogitsListener;
  /** What passes are driven with, where that is one collective in a thread of its own. */
  readonly collective?: Collective;
}

export class ModelRunner {
  readonly loaded: RankModel;
  readonly #steps: Steps;
  readonly #sampler: Sampler;
  readonly #inputs: StepInputs;
  readonly #forward: RecordedForward;

  constructor(loaded: RankModel, { kernels, steps, onLogits, collective }: RunnerDependencies) {
    const { rank, options, config, context, model, memory, allocator } = loaded;
    this.loaded = loaded;
    this.#steps = steps;
    this.#sampler = new Sampler({
      kernels,
      rank,
      worldSize: options.worldSize,
      model,
      steps,
      vocabularySize: config.vocabularySize,
      hiddenSize: config.hiddenSize,
      allocator,
      onLogits,
    });
    this.#inputs = new StepInputs(steps, kernels, memory);
    this.#forward = new RecordedForward({
      model,
      kernels,
      methods: context.linears.map(({ method }) => method),
      collective,
    });
  }

  /** Loads one rank's part of a model to run it. Throws as loadRankModel does. */
  static async load(
    options: RankOptions,
    rank: number,
    dependencies: RunnerDependencies & LoadDependencies,
  ): Promise<ModelRunner> {
    return new ModelRunner(await loadRankModel(options, rank, dependencies), dependencies);
  }

  get report(): RankReport {
    return this.loaded.report;
  }

  /** Runs step `n`, which its arrays hold. Results are there when the pass ends on rank 0. */
  *runStep(n = 0): Pass {
    const step = stepOf(this.#steps, n);
    yield* this.#forward.forward(this.#inputs.of(n));
    yield* this.#sampler.run(step, step.views.header[STEP_OUTPUTS] ?? 0);
  }
}
