/**
 * What one rank does: builds and loads its part of the model, and runs steps. It knows no thread and no port: a pass
 * yields at collectives, and whoever drives it decides how ranks meet.
 */
import type { Pass } from "../collectives/collective.js";
import { ArenaAllocator } from "../core/arena.js";
import type { Logger } from "../core/logger.js";
import type { Kernels } from "../kernels/kernels.js";
import type { ForwardStep } from "../layers/attention.js";
import { LayerContext } from "../layers/layer-context.js";
import { ModelMemory } from "../layers/model-memory.js";
import { loadWeights } from "../loading/load-weights.js";
import type { Registries } from "../loading/plugins.js";
import type { Model } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import type { RankOptions } from "./rank-options.js";
import { Sampler } from "./sampler.js";
import { STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS, type Step } from "./step.js";

/** How a rank was loaded. Plain data. */
export interface RankReport {
  readonly rank: number;
  /** Milliseconds from opening the checkpoint to the last weight being ready. */
  readonly loadMs: number;
  /** Bytes of tensor data read from disk. */
  readonly bytesRead: number;
  readonly parameterBytes: number;
  /** Bytes reserved for the KV cache. */
  readonly kvCacheBytes: number;
}

/** What a runner is given besides its options. */
export interface RunnerDependencies {
  readonly registries: Registries;
  readonly kernels: Kernels;
  /** The arrays steps come in, shared by all ranks. */
  readonly step: Step;
  /** Called while loading with the bytes read so far. */
  readonly onProgress?: (bytesRead: number) => void;
  readonly logger?: Logger;
}

export class ModelRunner {
  readonly report: RankReport;
  readonly #step: Step;
  readonly #model: Model;
  readonly #sampler: Sampler;
  readonly #forwardStep: ForwardStep;

  private constructor(report: RankReport, step: Step, model: Model, sampler: Sampler, kernels: Kernels) {
    this.report = report;
    this.#step = step;
    this.#model = model;
    this.#sampler = sampler;
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

  /** Builds and loads one rank's part of a model. Throws CheckpointError, PartitionError, PluginError, UnsupportedError. */
  static async load(options: RankOptions, rank: number, dependencies: RunnerDependencies): Promise<ModelRunner> {
    const { registries, kernels, step, onProgress, logger } = dependencies;
    const { config: json } = options.description;
    const started = performance.now();
    const family = selectFamily(json);
    const config = family.parseConfig(json);
    const weights = new ArenaAllocator(`rank${rank}.weights`);
    const context = new LayerContext({
      rank,
      worldSize: options.worldSize,
      kernels,
      weights,
      quantization: registries.quantization.configOf(json),
      dtype: options.dtype,
    });
    const memory = new ModelMemory({
      name: `rank${rank}`,
      kernels,
      maxTokens: options.limits.maxTokens,
      maxPositions: options.maxModelLength,
      kvCacheDtype: options.kvCacheDtype,
      blockSize: options.blockSize,
      blocks: options.blocks,
    });
    const model = family.create(json, context, memory);
    const checkpoint = await registries.modelLoaders.select(options.path, options.loadFormat).open(options.path);
    try {
      loadWeights(context, checkpoint, {
        ignores: (name) => family.ignores(name, json),
        ...(onProgress === undefined ? {} : { onProgress }),
        ...(logger === undefined ? {} : { logger }),
      });
    } finally {
      checkpoint.close();
    }
    const report: RankReport = {
      rank,
      loadMs: performance.now() - started,
      bytesRead: checkpoint.bytesRead,
      parameterBytes: weights.usedBytes,
      kvCacheBytes: memory.kvCacheBytes,
    };
    const sampler = new Sampler({
      kernels,
      rank,
      worldSize: options.worldSize,
      model,
      step,
      vocabularySize: config.vocabularySize,
      hiddenSize: config.hiddenSize,
    });
    return new ModelRunner(report, step, model, sampler, kernels);
  }

  /** Runs the step that the arrays hold. Results are there when the pass ends on rank 0. */
  *runStep(): Pass {
    const { header } = this.#step.views;
    const step = this.#forwardStep;
    step.tokens = header[STEP_TOKENS] ?? 0;
    step.sequences = header[STEP_SEQUENCES] ?? 0;
    yield* this.#model.forward(step);
    yield* this.#sampler.run(header[STEP_OUTPUTS] ?? 0);
  }
}
