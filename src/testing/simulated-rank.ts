/** One rank of a simulation, for inspection: its layers, its parameters, and what they hold. */
import type { DType } from "../core/dtype.js";
import { convertFloats, isFloat } from "../core/dtype.js";
import { InternalError, OptionError } from "../core/errors.js";
import { bytesOf, elementCount, tensorBytes } from "../core/tensor.js";
import { dequantize } from "../kernels/execution-format.js";
import type { LinearModule } from "../layers/layer-context.js";
import type { LoadedSlice, Parameter } from "../layers/parameter.js";
import { rangeSize } from "../parallel/partition.js";
import type { ExecutionWeight, LinearLayer, ParameterSpec } from "../quantization/contract.js";
import { UnquantizedLinearMethod } from "../quantization/unquantized.js";
import { type RankOwnership, rankOwnership } from "../rank/ownership.js";
import type { RankModel } from "../rank/rank-model.js";

/** A parameter of one rank. */
export class SimulatedParameter {
  readonly rank: number;
  /** `model.layers.0.self_attn.qkv_proj.weight` */
  readonly name: string;
  /** How its layer's method declared it. */
  readonly spec: ParameterSpec;
  readonly #parameter: Parameter;

  constructor(parameter: Parameter) {
    this.rank = parameter.rank;
    this.name = parameter.name;
    this.spec = parameter.spec;
    this.#parameter = parameter;
  }

  get dtype(): DType {
    return this.#parameter.tensor.dtype;
  }

  /** Of this rank's shard, in storage elements. */
  get shape(): readonly number[] {
    return this.#parameter.tensor.shape;
  }

  get sizeBytes(): number {
    return tensorBytes(this.#parameter.tensor);
  }

  /** Which rows and columns of which checkpoint tensors it was loaded from, and where they lie in it. */
  get slices(): readonly LoadedSlice[] {
    return this.#parameter.loaded;
  }

  /** A copy of its bytes. Throws InternalError in a shape-only simulation. */
  bytes(): Uint8Array {
    return bytesOf(this.#parameter.tensor).slice();
  }

  /** Its elements as f32, row-major. Throws InternalError for another dtype than f32, bf16 and f16, as for `bytes`. */
  values(): Float32Array {
    const { dtype, name } = this;
    if (!isFloat(dtype)) throw new InternalError(`expected ${name} to hold floating-point numbers but it is ${dtype}`);
    const values = new Float32Array(elementCount(this.shape));
    convertFloats(this.bytes(), dtype, new Uint8Array(values.buffer), "f32", name);
    return values;
  }
}

/** A linear layer or an embedding of one rank. */
export class SimulatedLayer {
  /** Which rows and columns the rank owns. */
  readonly plan: LinearLayer;
  readonly parameters: readonly SimulatedParameter[];
  readonly #module: LinearModule;

  constructor(module: LinearModule) {
    this.plan = module.layer;
    this.parameters = module.parameters.map((parameter) => new SimulatedParameter(parameter));
    this.#module = module;
  }

  /** `model.layers.0.self_attn.qkv_proj` */
  get prefix(): string {
    return this.plan.prefix;
  }

  /** Whether a quantization format stores and applies its weights. Also true of the stand-ins in a shape-only simulation. */
  get isQuantized(): boolean {
    return !(this.#module.method instanceof UnquantizedLinearMethod);
  }

  /** What the kernels multiply with, in the order of rows. Empty in a shape-only simulation. */
  executionWeights(): readonly ExecutionWeight[] {
    return this.#module.method.executionWeights();
  }

  /** `[rows, columns]` of this rank: what the execution weights stand for. */
  get shape(): readonly [number, number] {
    return [this.plan.outputSizePerPartition, rangeSize(this.plan.inputs)];
  }

  /**
   * The values that the rank multiplies with, dequantized, row-major `[rows, columns]`: the rows of one part after the
   * other. Throws InternalError when the method's execution weights do not tile the rows.
   */
  values(): Float32Array {
    const [rows, columns] = this.shape;
    const values = new Float32Array(rows * columns);
    let row = 0;
    for (const { firstRow, weight } of this.executionWeights()) {
      const part = dequantize(weight);
      if (firstRow !== row || part.length > values.length - row * columns) throw this.#untiled(row, firstRow);
      values.set(part, row * columns);
      row += part.length / Math.max(1, columns);
    }
    if (row !== rows) throw this.#untiled(rows, row);
    return values;
  }

  #untiled(expected: number, received: number): InternalError {
    const { prefix, rank } = this.plan;
    return new InternalError(
      `${prefix} on rank ${rank}: expected execution weights up to row ${expected} but received row ${received}`,
      { layer: prefix, rank, expected, received },
    );
  }
}

export class SimulatedRank {
  readonly rank: number;
  /** Linear layers and embeddings, in the order of the model. */
  readonly layers: readonly SimulatedLayer[];
  /** All parameters, those of the layers among them. */
  readonly parameters: readonly SimulatedParameter[];
  /** Checkpoint tensors that the model knows and does not use. */
  readonly ignoredTensors: readonly string[];
  /** What it holds, as plain data. */
  readonly ownership: RankOwnership;

  constructor(model: RankModel) {
    this.rank = model.rank;
    this.layers = model.context.linears.map((module) => new SimulatedLayer(module));
    const ofLayers = this.layers.flatMap(({ parameters }) => parameters);
    const byName = new Map(ofLayers.map((parameter) => [parameter.name, parameter]));
    this.parameters = model.context.parameters.map((each) => byName.get(each.name) ?? new SimulatedParameter(each));
    this.ignoredTensors = model.ignored;
    this.ownership = rankOwnership(model);
  }

  /** A layer by its path. Throws OptionError `INVALID_OPTION` when there is none. */
  layer(prefix: string): SimulatedLayer {
    return (
      this.layers.find((layer) => layer.prefix === prefix) ??
      unknown(
        "layer",
        prefix,
        this.layers.map((each) => each.prefix),
      )
    );
  }

  /** A parameter by its name. Throws OptionError `INVALID_OPTION` when there is none. */
  parameter(name: string): SimulatedParameter {
    const { parameters } = this;
    return (
      parameters.find((each) => each.name === name) ??
      unknown(
        "parameter",
        name,
        parameters.map((each) => each.name),
      )
    );
  }
}

function unknown(what: string, received: string, known: readonly string[]): never {
  const shown = known.slice(0, 8).join(", ");
  const expected = known.length > 8 ? `${shown}, ... (${known.length} in all)` : shown;
  throw new OptionError("INVALID_OPTION", `expected a ${what} of the model (${expected}) but received ${received}`, {
    option: what,
    expected,
    received,
  });
}
