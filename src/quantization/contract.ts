/**
 * The contract between the layers and a quantization format. A format registers a quantization config; the config gives
 * each linear layer its linear method; the method creates the layer's parameters, turns what was loaded into an
 * execution format, and applies it. The layer decides which rows and columns a rank owns; the method decides how they
 * are stored. Neither knows the other's business, and no layer knows any format.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import type { ReadGroup } from "../checkpoint/shared-reads.js";
import type { Pass } from "../collectives/collective.js";
import type { DType, FloatDType } from "../core/dtype.js";
import type { JsonObject } from "../core/json.js";
import type { Operand } from "../core/operand.js";
import type { Tensor } from "../core/tensor.js";
import type { Kernels, LinearWeight } from "../kernels/kernels.js";
import type { Range, Split } from "../parallel/partition.js";

/** Which logical matrix of a fused layer a loaded weight is; null for all of them (fused on disk) or the only one. */
export type ShardId = "q" | "k" | "v" | number;

/** Offset and size along a dimension, in logical rows or in storage elements, as the context says. */
export interface Extent {
  readonly offset: number;
  readonly size: number;
}

/** Offsets of the logical matrices of a fused layer by shard id ("q", "k", "v" or "0", "1", ..), and "total". */
export type OriginalOffsets = ReadonlyMap<string, Extent>;

/** What a shard indexer is asked. */
export interface ShardIndexQuery {
  /** Whether the extent lies in the parameter ("destination") or in the loaded weight ("source"). */
  readonly of: "destination" | "source";
  readonly shardId: ShardId;
  /** What the layer would use without an indexer, block scales and packing already taken into account. */
  readonly extent: Extent;
  /** Storage elements of the tensor along the dimension that is indexed. */
  readonly storageExtent: number;
  /** Logical offsets of all matrices; computed when first asked for, at most once a layer. */
  readonly originalOffsets: () => OriginalOffsets;
  readonly rank: number;
  readonly worldSize: number;
  /** True if the loaded weight is this rank's shard already. */
  readonly sourceIsLocal: boolean;
}

/**
 * Turns a logical extent of a fused layer into one of storage elements. A parameter has one only when its storage does
 * not follow from packing; without it, the original offsets are never computed.
 */
export type ShardIndexer = (query: ShardIndexQuery) => Extent;

/** Storage of one parameter of a layer on this rank. */
export interface ParameterSpec {
  /** What is loaded into it, below the name of a module on disk: "weight", "weight.absmax", "bias". */
  readonly name: string;
  /**
   * Shard ids of the logical matrices it holds, consecutive ones; all of the layer's by default. The parts of a fused
   * layer may be stored differently: then each kind of storage is a parameter of its own, under the same name.
   */
  readonly parts?: readonly ShardId[];
  readonly dtype: DType;
  /** Local storage shape. */
  readonly shape: readonly number[];
  /** Dimension that follows output features; null if the parameter is not split by column-parallel layers. */
  readonly outputDim: number | null;
  /** Dimension that follows input features; null if the parameter is not split by row-parallel layers. */
  readonly inputDim: number | null;
  /** Several logical rows or columns share a storage element along `dim`: storage = logical / factor, exactly. */
  readonly packed?: { readonly dim: number; readonly factor: number };
  /**
   * A 2-D scale with one entry per block of this many outputs and inputs. A rank takes every block that its rows and
   * columns touch. One grid of blocks runs through a loaded weight, also where several matrices are fused in it: a part
   * that begins inside a block takes that block too.
   */
  readonly blockScale?: { readonly outputs: number; readonly inputs: number };
  /** A 1-D parameter with one slot per logical matrix, each loaded from a scalar. */
  readonly scalarSlots?: boolean;
  /** The loaded weight is already this rank's shard: the source is not sliced again. */
  readonly isSharded?: boolean;
  readonly shardIndexer?: ShardIndexer;
  /** A matrix of codes of so many bits whose rows are to lie in groups (checkpoint/row-groups.ts), as kernels will have them. */
  readonly rowGroups?: 4 | 8;
  /** Of such a matrix: the name of the parameter with the scales of the same rows, `[rows, scales]`; it may be filled with the codes. */
  readonly scales?: string;
}

/** One logical matrix of a linear layer, and which part of it this rank owns. */
export interface LinearPart {
  /** Name of the module on disk, `model.layers.0.self_attn.q_proj`. */
  readonly prefix: string;
  readonly shardId: ShardId | null;
  /** Rows of the whole matrix. */
  readonly outputSize: number;
  /** Rows this rank owns. */
  readonly rows: Range;
  /** Rows of every rank; absent where that is not known. */
  readonly split?: Split;
  /** Where they start in the layer's output on this rank. */
  readonly localOffset: number;
}

/** A linear layer, or an embedding (a matrix whose rows are looked up), as its method sees it. */
export interface LinearLayer {
  readonly prefix: string;
  readonly kind: "replicated" | "column" | "merged" | "qkv" | "row" | "embedding";
  /** True of what makes the logits: an output head, or an embedding that serves as one. */
  readonly isHead?: boolean;
  /** Inputs of the whole matrix. */
  readonly inputSize: number;
  /** Inputs this rank owns: all, except in a row-parallel layer. */
  readonly inputs: Range;
  /** Inputs of every rank in a row-parallel layer; absent in others, and where that is not known. */
  readonly inputSplit?: Split;
  readonly parts: readonly LinearPart[];
  /** Rows on this rank, over all parts. */
  readonly outputSizePerPartition: number;
  readonly rank: number;
  readonly worldSize: number;
  /** dtype of unquantized weights. */
  readonly dtype: FloatDType;
}

/** What a method may do while creating parameters. */
export interface WeightCreation {
  addParameter(spec: ParameterSpec): void;
  /** Whether the kernels take codes that lie in groups of rows, where weights are in blocks of `blockSize`; absent where not. */
  takesRowGroups?(format: "code4" | "int8", blockSize: number): boolean;
}

/** What a method sees when all parameters of its layer have been loaded. */
export interface LoadedWeights {
  readonly kernels: Kernels;
  /** Storage of a parameter the method added; `part`, where several parameters have that name, is one of its shard ids. */
  tensor(name: string, part?: ShardId): Tensor;
  /** Zeroed memory beside the parameters, for what is not loaded: codebooks, scratch of `apply`. Lives with the model. */
  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor;
}

/** Weights ready for the kernels: some consecutive rows of a layer's output on this rank. */
export interface ExecutionWeight {
  /** Row of the layer's local output at which they begin. */
  readonly firstRow: number;
  readonly weight: LinearWeight;
}

/** How one linear layer stores, prepares and applies its weights. One instance a layer. */
export interface LinearMethod {
  /**
   * Whether `apply` and `embed` do nothing but call kernels, and the same ones whenever operands and rows are the same. The
   * calls of a step are then written down and made again for steps like it, and the method is not asked. False by default.
   */
  readonly recordable?: boolean;
  createWeights(creation: WeightCreation, layer: LinearLayer): void;
  processWeightsAfterLoading(weights: LoadedWeights, layer: LinearLayer): void;
  /** `out[m] = x[m] * W^T + bias` for the first `rows` rows; allocates nothing. */
  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void;
  /**
   * In a row-parallel layer of several ranks, instead of `apply` and the all-reduce after it: a method whose arithmetic
   * needs the other ranks before it can sum. What it leaves in `out` is the whole result, bias included, on every rank.
   */
  applyReduced?(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): Pass;
  /** In an embedding: `out[m]` = row `ids[m] - firstId`, zeros where this rank has no such row. */
  embed?(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void;
  /** What `apply` works with, in the order of rows: for inspection and tests. Valid after processing. */
  executionWeights(): readonly ExecutionWeight[];
}

/** A quantization format, configured for one checkpoint or one user's wish, on one rank. */
export interface QuantizationConfig {
  readonly name: string;
  /**
   * The checkpoint as the layers see it, where that is not what is on disk: a quantized weight and its sidecars may
   * appear as tensors of the format's own making, regular enough for the layers' weight loaders to slice. Asked for
   * after all layers have been created.
   */
  readonly checkpoint?: Checkpoint;
  /** The method for a layer, or null where the format leaves it unquantized. */
  linearMethod(layer: LinearLayer): LinearMethod | null;
}

/** What a quantization config is made from. */
export interface QuantizationRequest {
  /** "checkpoint": it is quantized on disk. "user": it is to be quantized while it is loaded. */
  readonly origin: "checkpoint" | "user";
  /** `quantization_config` of config.json; empty when there is none. */
  readonly settings: JsonObject;
  /** What the user said beside the name of the method; empty when nothing. */
  readonly options: JsonObject;
  /** Headers are read; weights are not. */
  readonly checkpoint: Checkpoint;
  /**
   * The ranks that load together, for what each of them needs of other ranks' parts: one of them may make it for all.
   * Absent where a rank loads alone; what it loads must be the same bits.
   */
  readonly group?: ReadGroup;
}

/** A quantization format as a plugin registers it. */
export interface QuantizationConfigFactory {
  /** Throws ShardloomError for settings it cannot serve. */
  create(request: QuantizationRequest): QuantizationConfig;
  /**
   * May claim a checkpoint that names another method, or that a user wants handled by another: returns the name to use,
   * or null to leave the choice alone (vLLM's `override_quantization_method`).
   */
  overrideQuantizationMethod?(settings: JsonObject | null, userChoice: string | null): string | null;
}
