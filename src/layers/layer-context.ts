/**
 * What layers are built with: this rank's identity as a value, the memory for its parameters, and the table of
 * checkpoint names in which each layer says which loaded weights it takes.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import type { SharedReads } from "../checkpoint/shared-reads.js";
import type { TensorAllocator } from "../core/arena.js";
import type { DType, FloatDType } from "../core/dtype.js";
import { type Tensor, tensorBytes } from "../core/tensor.js";
import type { Kernels } from "../kernels/kernels.js";
import type {
  LinearLayer,
  LinearMethod,
  ParameterSpec,
  QuantizationConfig,
  ShardId,
} from "../quantization/contract.js";
import { Parameter } from "./parameter.js";
import type { PlacementObserver } from "./shard-placement.js";

/** Takes one checkpoint tensor into one parameter. */
export interface WeightTarget {
  readonly parameter: Parameter;
  readonly shardId: ShardId | null;
  load(source: CheckpointTensor): void;
}

/** A linear layer or an embedding, as the context knows it. */
export interface LinearModule {
  readonly layer: LinearLayer;
  readonly method: LinearMethod;
  readonly parameters: readonly Parameter[];
  /** Called once all parameters of the model are loaded. */
  processWeightsAfterLoading(): void;
}

/** Hears when the weights of a layer are prepared for the kernels. */
export interface RepackObserver {
  enter(phase: "repack", layer: string): void;
  /** It is prepared, and so many bytes of its parameters were rearranged for it. */
  leave(bytes: number): void;
}

export interface LayerContextOptions {
  readonly rank: number;
  readonly worldSize: number;
  readonly kernels: Kernels;
  readonly weights: TensorAllocator;
  readonly quantization: QuantizationConfig;
  /** dtype of unquantized weights. */
  readonly dtype: FloatDType;
  /** Hears how shards are placed; for tests and the simulator. */
  readonly observer?: PlacementObserver;
  /** How ranks share what several of them load; without it each reads for itself. */
  readonly shared?: SharedReads | undefined;
}

export class LayerContext {
  readonly rank: number;
  readonly worldSize: number;
  readonly kernels: Kernels;
  readonly quantization: QuantizationConfig;
  readonly dtype: FloatDType;
  /** Checkpoint name -> who takes it. Exact names: nothing is matched by pattern. */
  readonly targets = new Map<string, WeightTarget[]>();
  readonly parameters: Parameter[] = [];
  /** Linear layers and embeddings, in the order of the model. */
  readonly linears: LinearModule[] = [];
  readonly observer: PlacementObserver;
  readonly #weights: TensorAllocator;
  readonly #shared: SharedReads | undefined;

  constructor(options: LayerContextOptions) {
    this.rank = options.rank;
    this.worldSize = options.worldSize;
    this.kernels = options.kernels;
    this.quantization = options.quantization;
    this.dtype = options.dtype;
    this.observer = options.observer ?? {};
    this.#weights = options.weights;
    this.#shared = options.shared;
  }

  /** Zeroed memory that lives with the model's weights. */
  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor {
    return this.#weights.allocate(name, dtype, shape);
  }

  /** Creates a parameter of the layer `prefix`. */
  createParameter(prefix: string, spec: ParameterSpec): Parameter {
    const name = `${prefix}.${spec.name}${spec.parts === undefined ? "" : `[${spec.parts.join(", ")}]`}`;
    const tensor = this.allocate(name, spec.dtype, spec.shape);
    const parameter = new Parameter(name, spec, tensor, this.rank, this.#shared);
    this.parameters.push(parameter);
    return parameter;
  }

  /** Declares that the checkpoint tensor `name` goes to `target`, and to whoever else declares it. */
  addTarget(name: string, target: WeightTarget): void {
    const targets = this.targets.get(name);
    if (targets === undefined) this.targets.set(name, [target]);
    else targets.push(target);
  }

  /** Registers a linear layer: it is processed after loading. */
  addLinear(layer: LinearModule): void {
    this.linears.push(layer);
  }

  /** `observer` hears of every layer. */
  processWeightsAfterLoading(observer?: RepackObserver): void {
    for (const module of this.linears) {
      if (observer === undefined) module.processWeightsAfterLoading();
      else processObserved(module, observer);
    }
  }
}

function processObserved(module: LinearModule, observer: RepackObserver): void {
  observer.enter("repack", module.layer.prefix);
  module.processWeightsAfterLoading();
  // Weights that kernels take as they were loaded are not touched.
  const rearranged = module.method.executionWeights().some(({ weight }) => weight.format === "prepared");
  observer.leave(rearranged ? module.parameters.reduce((sum, { tensor }) => sum + tensorBytes(tensor), 0) : 0);
}
