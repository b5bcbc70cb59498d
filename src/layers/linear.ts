/**
 * Linear layers of a tensor-parallel model and their weight loaders (vLLM's linear layers; PagedAttention-style serving
 * knows them as Megatron's column- and row-parallel layers, Shoeybi et al. 2019). A layer decides which rows and columns
 * its rank owns; its linear method decides how they are stored. Only RowParallelLinear meets the other ranks.
 *
 * One weight loader serves every kind: a layer is a list of logical matrices (`parts`), each with the rows this rank
 * owns, and a range of inputs. Even, uneven and replicated partitions differ in those numbers only.
 */

import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import type { AllReduce, Pass } from "../collectives/collective.js";
import { InternalError, OptionError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import type { Tensor } from "../core/tensor.js";
import {
  type HeadKind,
  type HeadRange,
  headRows,
  type Range,
  rangeOf,
  rangeSize,
  type Split,
} from "../parallel/partition.js";
import type {
  LinearLayer,
  LinearMethod,
  LinearPart,
  LoadedWeights,
  ParameterSpec,
  ShardId,
  WeightCreation,
} from "../quantization/contract.js";
import { callHook } from "../quantization/registry.js";
import { UnquantizedLinearMethod } from "../quantization/unquantized.js";
import type { LayerContext } from "./layer-context.js";
import { type Parameter, packExactly } from "./parameter.js";
import { originalOffsets, partsHeld, ShardPlacement } from "./shard-placement.js";

/** Which logical matrices of a fused layer a loaded weight holds: one, several consecutive ones, or all (null). */
export type LoadedShardId = ShardId | readonly number[] | null;

/**
 * How one checkpoint tensor holds all matrices of a layer: one after another, or group by group, `[q 0 | k 0 | v 0 | q 1 |
 * ..]`, a group being a KV head and the query heads that read it.
 */
export type FusedLayout = "concatenated" | "interleaved";

/** What linear layers and embeddings have in common: a method, its parameters, and their weight loader. */
export abstract class LinearBase {
  readonly layer: LinearLayer;
  readonly method: LinearMethod;
  readonly parameters: Parameter[] = [];
  protected readonly context: LayerContext;
  readonly #placement: ShardPlacement;
  /** Groups in which a tensor of all parts holds equal shares of each; 1 where parts are concatenated. */
  readonly #fusedGroups: number;
  #bias: Operand | null = null;

  constructor(context: LayerContext, layer: LinearLayer, bias: boolean, fusedGroups = 1) {
    this.context = context;
    this.layer = layer;
    this.#fusedGroups = fusedGroups;
    this.#placement = new ShardPlacement(layer, originalOffsets, context.observer);
    const { quantization } = context;
    this.method = this.#hook("linearMethod", () => quantization.linearMethod(layer)) ?? new UnquantizedLinearMethod();
    this.#hook("createWeights", () => this.method.createWeights(this.#creation(), layer));
    this.#pairScales();
    if (bias) {
      const shape = [layer.outputSizePerPartition];
      this.#add({ name: "bias", dtype: "f32", shape, outputDim: 0, inputDim: null });
    }
    context.addLinear(this);
  }

  /** Rows of the output on this rank. */
  get outputSizePerPartition(): number {
    return this.layer.outputSizePerPartition;
  }

  /** Calls a hook of the quantization format. Throws PluginError `PLUGIN_FAILED` for what is no error of ours. */
  #hook<Result>(name: string, hook: () => Result): Result {
    return callHook(this.context.quantization.name, `${name} of ${this.layer.prefix} on rank ${this.layer.rank}`, hook);
  }

  #creation(): WeightCreation {
    const { kernels } = this.context;
    return {
      addParameter: (spec) => this.#add(spec),
      takesRowGroups: (format, blockSize) => kernels.takesRowGroups({ format, blockSize }),
    };
  }

  #add(spec: ParameterSpec): void {
    const { layer } = this;
    const parameter = this.context.createParameter(layer.prefix, spec);
    this.parameters.push(parameter);
    for (const { prefix, shardId } of partsHeld(parameter, layer)) {
      this.#declare(`${prefix}.${spec.name}`, parameter, shardId);
    }
    if (layer.parts.length > 1) this.#declare(`${layer.prefix}.${spec.name}`, parameter, null);
  }

  /** Codes know where the scales of their rows are. */
  #pairScales(): void {
    for (const codes of this.parameters) {
      const { scales: name, parts, shape } = codes.spec;
      if (name === undefined) continue;
      const scales = this.parameters.find(({ spec }) => spec.name === name && String(spec.parts) === String(parts));
      if (scales?.spec.shape.length === 2 && scales.spec.shape[0] === shape[0]) codes.pairWith(scales);
    }
  }

  #declare(diskName: string, parameter: Parameter, shardId: ShardId | null): void {
    this.context.addTarget(diskName, {
      parameter,
      shardId,
      load: (source) => this.weightLoader(parameter, source, shardId),
    });
  }

  /**
   * Loads this rank's shard of a loaded weight into a parameter of the layer. Throws CheckpointError for a weight that
   * does not fit, OptionError `INVALID_SHARD_ID` for an id the layer does not have.
   */
  weightLoader(parameter: Parameter, source: CheckpointTensor, shardId: LoadedShardId = null): void {
    const parts = this.#partsOf(shardId);
    const { outputDim, scalarSlots } = parameter.spec;
    if (outputDim !== null && shardId === null && this.#fusedGroups > 1) {
      this.#loadGroups(parameter, source);
      return;
    }
    const held = partsHeld(parameter, this.layer);
    const place = { fused: parts.length > 1, total: rowsOf(parts) };
    let base = 0;
    for (const part of parts) {
      if (held.includes(part)) this.#placement.load(parameter, source, part, { ...place, base });
      if (outputDim === null && !scalarSlots) return;
      base += part.outputSize;
    }
  }

  /** Loads from a tensor in which the parts are interleaved: every group, and of it every part, is a piece of its own. */
  #loadGroups(parameter: Parameter, source: CheckpointTensor): void {
    const { parts } = this.layer;
    const groups = this.#fusedGroups;
    const held = partsHeld(parameter, this.layer);
    const total = rowsOf(parts);
    for (let group = 0; group < groups; group++) {
      let first = (group * total) / groups;
      for (const part of parts) {
        const size = part.outputSize / groups;
        // Pieces that share a block would have to share its scale.
        packExactly(parameter, size, parameter.spec.blockScale?.outputs ?? 1);
        const rows = intersection(part.rows, { start: group * size, end: (group + 1) * size });
        const place = { fused: true, base: first - group * size, total, rows };
        if (held.includes(part) && rangeSize(rows) > 0) this.#placement.load(parameter, source, part, place);
        first += size;
      }
    }
  }

  #partsOf(shardId: LoadedShardId): readonly LinearPart[] {
    const { parts, prefix } = this.layer;
    if (shardId === null) return parts;
    const ids: readonly ShardId[] = typeof shardId === "object" ? shardId : [shardId];
    const first = parts.findIndex((part) => part.shardId === ids[0]);
    const named = first < 0 ? [] : parts.slice(first, first + ids.length);
    if (ids.length === 0 || named.length !== ids.length || named.some((part, i) => part.shardId !== ids[i])) {
      const known = parts.map((part) => part.shardId).join(", ");
      throw new OptionError(
        "INVALID_SHARD_ID",
        `${prefix}: expected a shard id among ${known}, or consecutive ones, but received ${JSON.stringify(shardId)}`,
        { layer: prefix, expected: known, received: JSON.stringify(shardId), rank: this.layer.rank },
      );
    }
    return named;
  }

  processWeightsAfterLoading(): void {
    const { context, layer } = this;
    const { kernels } = context;
    const bias = this.parameters.find(({ spec }) => spec.name === "bias");
    if (bias !== undefined) this.#bias = kernels.bind(bias.tensor);
    const tensor = (name: string, part?: ShardId): Tensor => this.#parameter(name, part).tensor;
    const allocate: LoadedWeights["allocate"] = (name, dtype, shape) => {
      return context.allocate(`${layer.prefix}.${name}`, dtype, shape);
    };
    this.#hook("processWeightsAfterLoading", () => {
      this.method.processWeightsAfterLoading({ kernels, tensor, allocate }, layer);
    });
  }

  #parameter(name: string, part: ShardId | undefined): Parameter {
    const found = this.parameters.find(({ spec }) => {
      return spec.name === name && (part === undefined || spec.parts === undefined || spec.parts.includes(part));
    });
    if (found === undefined) throw new InternalError(`${this.layer.prefix} has no parameter ${name} for part ${part}`);
    return found;
  }

  /** The bias, where there is one; bound after processing. */
  protected get bias(): Operand | null {
    return this.#bias;
  }

  protected apply(out: Operand, x: Operand, rows: number): void {
    this.method.apply(this.context.kernels, out, x, this.#bias, rows);
  }
}

/** Rows of whole matrices together. */
function rowsOf(parts: readonly LinearPart[]): number {
  return parts.reduce((sum, { outputSize }) => sum + outputSize, 0);
}

/** What two ranges have in common; empty where they do not meet. */
function intersection(a: Range, b: Range): Range {
  const start = Math.max(a.start, b.start);
  return { start, end: Math.max(start, Math.min(a.end, b.end)) };
}

/** What all linear layers are built from. */
export interface LinearOptions {
  /** Path of the module in the model, `model.layers.0.self_attn.o_proj`. */
  readonly prefix: string;
  readonly inputSize: number;
  readonly bias?: boolean;
  /** Its outputs are the logits. */
  readonly isHead?: boolean;
}

function columnLayer(
  context: LayerContext,
  kind: LinearLayer["kind"],
  options: LinearOptions,
  parts: readonly Omit<LinearPart, "localOffset">[],
): LinearLayer {
  let localOffset = 0;
  const placed = parts.map((part) => {
    const here = { ...part, localOffset };
    localOffset += rangeSize(part.rows);
    return here;
  });
  return {
    prefix: options.prefix,
    kind,
    isHead: options.isHead ?? false,
    inputSize: options.inputSize,
    inputs: { start: 0, end: options.inputSize },
    parts: placed,
    outputSizePerPartition: localOffset,
    rank: context.rank,
    worldSize: context.worldSize,
    dtype: context.dtype,
  };
}

/** `[outputs, inputs]` whole on every rank. */
export class ReplicatedLinear extends LinearBase {
  constructor(context: LayerContext, options: LinearOptions & { readonly outputSize: number }) {
    const { prefix, outputSize } = options;
    const rows = { start: 0, end: outputSize };
    const split = new Array<Range>(context.worldSize).fill(rows);
    super(
      context,
      columnLayer(context, "replicated", options, [{ prefix, shardId: null, outputSize, rows, split }]),
      options.bias ?? false,
    );
  }

  /** out: `[rows, outputs]`, x: `[rows, inputs]`. */
  forward(out: Operand, x: Operand, rows: number): void {
    this.apply(out, x, rows);
  }
}

/** Rows split over the ranks: each computes its own outputs from the whole input. */
export class ColumnParallelLinear extends LinearBase {
  constructor(context: LayerContext, options: LinearOptions & { readonly outputSize: number; readonly split: Split }) {
    const { prefix, outputSize, split } = options;
    const rows = rangeOf(split, context.rank);
    super(
      context,
      columnLayer(context, "column", options, [{ prefix, shardId: null, outputSize, rows, split }]),
      options.bias ?? false,
    );
  }

  /** out: `[rows, outputs of this rank]`, x: `[rows, inputs]`. */
  forward(out: Operand, x: Operand, rows: number): void {
    this.apply(out, x, rows);
  }
}

/** Several column-parallel matrices stored as one, `[part 0 of this rank; part 1 of this rank; ..]`. Shard ids 0, 1, .. */
export class MergedColumnParallelLinear extends LinearBase {
  constructor(
    context: LayerContext,
    options: LinearOptions & {
      /** Paths of the matrices on disk, with their rows and how they are split. */
      readonly parts: readonly { readonly prefix: string; readonly outputSize: number; readonly split: Split }[];
    },
  ) {
    const parts = options.parts.map(({ prefix, outputSize, split }, shardId) => {
      return { prefix, shardId, outputSize, rows: rangeOf(split, context.rank), split };
    });
    super(context, columnLayer(context, "merged", options, parts), options.bias ?? false);
  }

  forward(out: Operand, x: Operand, rows: number): void {
    this.apply(out, x, rows);
  }
}

/** Query, key and value projections stored as one. Shard ids "q", "k", "v". */
export class QKVParallelLinear extends LinearBase {
  constructor(
    context: LayerContext,
    options: LinearOptions & {
      readonly headSize: number;
      /** Size of a value head; `headSize` by default. */
      readonly valueHeadSize?: number;
      readonly totalHeads: number;
      readonly totalKvHeads: number;
      /** One entry a rank. */
      readonly heads: readonly HeadRange[];
      readonly names: { readonly q: string; readonly k: string; readonly v: string };
      /** Of a tensor that holds all three; "concatenated" by default. */
      readonly fusedLayout?: FusedLayout;
    },
  ) {
    const { headSize, totalHeads, totalKvHeads, names, fusedLayout = "concatenated" } = options;
    const valueHeadSize = options.valueHeadSize ?? headSize;
    if (options.heads[context.rank] === undefined) {
      throw new InternalError(`no heads planned for rank ${context.rank}`);
    }
    const rowsOf = (of: HeadKind, size: number): Pick<LinearPart, "rows" | "split"> => {
      const split = headRows(options.heads, of, size);
      return { rows: rangeOf(split, context.rank), split };
    };
    const q = rowsOf("queryHeads", headSize);
    const [k, v] = [rowsOf("kvHeads", headSize), rowsOf("kvHeads", valueHeadSize)];
    super(
      context,
      columnLayer(context, "qkv", options, [
        { prefix: names.q, shardId: "q", outputSize: totalHeads * headSize, ...q },
        { prefix: names.k, shardId: "k", outputSize: totalKvHeads * headSize, ...k },
        { prefix: names.v, shardId: "v", outputSize: totalKvHeads * valueHeadSize, ...v },
      ]),
      options.bias ?? false,
      fusedLayout === "interleaved" ? totalKvHeads : 1,
    );
  }

  /** out: `[rows, q of this rank | k | v]`. */
  forward(out: Operand, x: Operand, rows: number): void {
    this.apply(out, x, rows);
  }
}

/** Columns split over the ranks: each multiplies its own inputs, and the partial results are summed by an all-reduce. */
export class RowParallelLinear extends LinearBase {
  #request: AllReduce | undefined;

  constructor(context: LayerContext, options: LinearOptions & { readonly outputSize: number; readonly split: Split }) {
    const { prefix, inputSize, outputSize, split } = options;
    const rows = { start: 0, end: outputSize };
    const everybodys = new Array<Range>(context.worldSize).fill(rows);
    super(
      context,
      {
        prefix,
        kind: "row",
        isHead: options.isHead ?? false,
        inputSize,
        inputs: rangeOf(split, context.rank),
        inputSplit: split,
        parts: [{ prefix, shardId: null, outputSize, rows, split: everybodys, localOffset: 0 }],
        outputSizePerPartition: outputSize,
        rank: context.rank,
        worldSize: context.worldSize,
        dtype: context.dtype,
      },
      options.bias ?? false,
    );
  }

  /** out: `[rows, outputs]`, the same on every rank; x: `[rows, inputs of this rank]`. The bias is added once, by rank 0. */
  *forward(out: Operand, x: Operand, rows: number): Pass {
    const { rank, worldSize } = this.layer;
    const { kernels } = this.context;
    if (worldSize > 1 && this.method.applyReduced !== undefined) {
      yield* this.method.applyReduced(kernels, out, x, this.bias, rows);
      return;
    }
    this.method.apply(kernels, out, x, rank === 0 ? this.bias : null, rows);
    if (worldSize === 1) return;
    // One request object, reused: a step allocates nothing.
    if (this.#request?.data !== out)
      this.#request = { kind: "allReduce", site: this.layer.prefix, data: out, count: 0 };
    this.#request.count = rows * this.layer.outputSizePerPartition;
    yield this.#request;
  }
}
