/**
 * What one rank does: it runs steps on its part of the model. It knows no thread and no port: a pass yields at
 * collectives, and whoever drives it decides how ranks meet.
 */
import type { Pass } from "../collectives/collective.js";
import type { Kernels } from "../kernels/kernels.js";
import type { ForwardStep } from "../layers/attention.js";
import { type LoadDependencies, loadRankModel, type RankModel, type RankReport } from "./rank-model.js";
import type { RankOptions } from "./rank-options.js";
import { type LogitsListener, Sampler } from "./sampler.js";
import { STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS, type Step } from "./step.js";

export type { RankReport } from "./rank-model.js";

/** What a runner is given besides the model. */
export interface RunnerDependencies {
  readonly kernels: Kernels;
  /** The arrays steps come in, shared by all ranks. */
  readonly step: Step;
  readonly onLogits?: LogitsListener;
}

export class ModelRunner {
  readonly loaded: RankModel;
  readonly #step: Step;
  readonly #sampler: Sampler;
  readonly #forwardStep: ForwardStep;

  constructor(loaded: RankModel, { kernels, step, onLogits }: RunnerDependencies) {
    const { rank, options, config, model, allocator } = loaded;
    this.loaded = loaded;
    this.#step = step;
    this.#sampler = new Sampler({
      kernels,
      rank,
      worldSize: options.worldSize,
      model,
      step,
      vocabularySize: config.vocabularySize,
      hiddenSize: config.hiddenSize,
      allocator,
      onLogits,
    });
    const { tensors } = step;
    this.#forwardStep = {
      tokens: 0,
      sequences: 0,
      tokenIds: kernels.bind(tensors.tokenIds),
      positions: kernels.bind(tensors.positions),
      slots: kernels.bind(tensors.slots),
      batch: {
        queryStarts: kernels.bind(tensors.queryStarts),
        contextLengths: kernels.bind(tensors.contextLengths),
        blockTables: kernels.bind(tensors.blockTables),
      },
    };
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

  /** Runs the step that the arrays hold. Results are there when the pass ends on rank 0. */
  *runStep(): Pass {
    const { header } = this.#step.views;
    const { model } = this.loaded;
    const step = this.#forwardStep;
    step.tokens = header[STEP_TOKENS] ?? 0;
    step.sequences = header[STEP_SEQUENCES] ?? 0;
    yield* model.forward(step);
    yield* this.#sampler.run(header[STEP_OUTPUTS] ?? 0);
  }
}
