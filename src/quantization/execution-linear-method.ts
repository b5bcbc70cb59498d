/**
 * The linear method of weights that are in execution formats when they are read: what the checkpoint's view yields (codes,
 * scales and minimums as kernels take them, or plain matrices) is a weight as it is. Nothing is repacked, nothing is rounded.
 * For formats whose loader, or whose quantization config, can lay out weights like that.
 */
import type { FloatDType } from "../core/dtype.js";
import { invariant } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { f32Of } from "../core/tensor.js";
import type { Kernels, LinearWeight } from "../kernels/kernels.js";
import { rangeSize } from "../parallel/partition.js";
import type {
  ExecutionWeight,
  LinearLayer,
  LinearMethod,
  LinearPart,
  LoadedWeights,
  ParameterSpec,
  WeightCreation,
} from "./contract.js";

/** Codes of one kind, with what turns them into values (kernels.ts says how). */
interface Codes {
  /** Whether there is a minimum beside each scale. */
  readonly minimums: boolean;
  /** dtype of scales and minimums. */
  readonly valueDType: "f32" | "f16";
}

/** How a rank stores matrices of a layer, `[rows, inputs]` each. Plain data: two that are alike in JSON are the same. */
export type ExecutionStorage =
  /** Floating-point numbers. Loads `NAME.weight`. */
  | { readonly kind: "dense"; readonly dtype: FloatDType }
  /** 8-bit codes, the scales of which hold for a whole row. Loads `NAME.weight.codes` (i8), `.scales`, `.minimums` `[rows, 1]`. */
  | ({ readonly kind: "rowScales"; readonly multiplier: number } & Codes)
  /**
   * Codes, and scales for `blockSize` inputs of a row, none of which crosses an edge of the rank's inputs. Loads
   * `NAME.weight.codes` (code4: u8 `[rows, inputs / 2]`, the even input in the high half; int8: i8 `[rows, inputs]`), and
   * `.scales`, `.minimums` `[rows, inputs / blockSize]`.
   */
  | ({
      readonly kind: "blocks";
      readonly execution: "code4" | "int8";
      readonly blockSize: number;
      /** The 16 values of code4; null for int8. */
      readonly codebook: readonly number[] | null;
      /** Of int8: scales are multiplied with it first. 1 for code4. */
      readonly multiplier: number;
    } & Codes);

/** Neighbouring matrices of a layer in the same storage: one weight for the kernels. */
export interface ExecutionSegment {
  readonly storage: ExecutionStorage;
  readonly parts: readonly LinearPart[];
  /** Row of the layer's output on this rank at which it begins. */
  readonly firstRow: number;
  readonly rows: number;
}

/** The segments of a layer, in the order of rows, from the storage of each of its matrices. */
export function executionSegments(
  { parts }: LinearLayer,
  storageOf: (part: LinearPart) => ExecutionStorage,
): readonly ExecutionSegment[] {
  const segments: ExecutionSegment[] = [];
  for (const part of parts) {
    const storage = storageOf(part);
    const rows = rangeSize(part.rows);
    const last = segments.at(-1);
    if (last !== undefined && JSON.stringify(last.storage) === JSON.stringify(storage)) {
      segments[segments.length - 1] = { ...last, parts: [...last.parts, part], rows: last.rows + rows };
    } else segments.push({ storage, parts: [part], firstRow: part.localOffset, rows });
  }
  return segments;
}

/** The codebooks of one rank, by their entries: layers share them. A quantization config has one of these. */
export class Codebooks {
  readonly #operands = new Map<string, Operand>();

  /** f32 `[16]`. */
  get(entries: readonly number[], { kernels, allocate }: LoadedWeights): Operand {
    const key = entries.join(" ");
    const existing = this.#operands.get(key);
    if (existing !== undefined) return existing;
    const tensor = allocate(`codebook${this.#operands.size}`, "f32", [16]);
    f32Of(tensor).set(entries);
    const operand = kernels.bind(tensor);
    this.#operands.set(key, operand);
    return operand;
  }
}

/** Serves layers and embeddings. Of each rank the storage may be another: blocks are cut where its inputs are. */
export class ExecutionLinearMethod implements LinearMethod {
  readonly #segments: readonly ExecutionSegment[];
  readonly #codebooks: Codebooks;
  readonly #readInGroups: ReadonlySet<LinearPart>;
  /** Those whose codes are read in groups of rows. */
  readonly #inGroups = new Set<ExecutionSegment>();
  #weights: readonly ExecutionWeight[] = [];

  /** `readInGroups`: parts whose codes can be read in groups of rows. */
  constructor(
    segments: readonly ExecutionSegment[],
    codebooks: Codebooks,
    readInGroups: ReadonlySet<LinearPart> = new Set(),
  ) {
    this.#segments = segments;
    this.#codebooks = codebooks;
    this.#readInGroups = readInGroups;
  }

  /** Not for whoever does something else instead, until they say so. */
  get recordable(): boolean {
    const { apply, embed } = ExecutionLinearMethod.prototype;
    return this.apply === apply && this.embed === embed;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const several = this.#segments.length > 1;
    for (const segment of this.#segments) {
      const { storage, parts } = segment;
      const taken =
        storage.kind === "blocks" && creation.takesRowGroups?.(storage.execution, storage.blockSize) === true;
      const inGroups = taken && parts.every((part) => this.#readInGroups.has(part));
      if (inGroups) this.#inGroups.add(segment);
      for (const spec of parametersOf(segment, layer, several, inGroups)) creation.addParameter(spec);
    }
  }

  processWeightsAfterLoading(weights: LoadedWeights): void {
    this.#weights = this.#segments.map((segment) => {
      const bound = bindSegment(segment, weights, this.#codebooks, this.#inGroups.has(segment));
      const weight = weights.kernels.prepareLinear(bound);
      return { firstRow: segment.firstRow, weight };
    });
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    invariant(this.#weights.length > 0, "a linear layer was used before its weights were processed");
    for (const { firstRow, weight } of this.#weights) kernels.linear(out, x, weight, bias, rows, firstRow);
  }

  embed(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    const [table, ...others] = this.#weights;
    invariant(table !== undefined && others.length === 0, "an embedding has one weight, processed before it is used");
    kernels.embedding(out, ids, table.weight, rows, firstId);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weights;
  }
}

/** What a segment loads. `several`: it is not the whole of its layer. `inGroups`: its codes lie in groups of rows. */
function parametersOf(
  { storage, parts, rows }: ExecutionSegment,
  layer: LinearLayer,
  several: boolean,
  inGroups: boolean,
): ParameterSpec[] {
  const inputs = rangeSize(layer.inputs);
  const shardIds = parts.map(({ shardId }) => shardId).filter((shardId) => shardId !== null);
  const common = { ...(several ? { parts: shardIds } : {}), outputDim: 0, inputDim: 1 };
  if (storage.kind === "dense") return [{ ...common, name: "weight", dtype: storage.dtype, shape: [rows, inputs] }];
  const planes = storage.minimums ? (["scales", "minimums"] as const) : (["scales"] as const);
  const i8Codes: ParameterSpec = { ...common, name: "weight.codes", dtype: "i8", shape: [rows, inputs] };
  if (storage.kind === "rowScales") {
    const perRow = (plane: string): ParameterSpec => {
      return { ...common, inputDim: null, name: `weight.${plane}`, dtype: storage.valueDType, shape: [rows, 1] };
    };
    return [i8Codes, ...planes.map(perRow)];
  }
  const { execution, blockSize } = storage;
  const perBlock = (plane: string): ParameterSpec => ({
    ...common,
    name: `weight.${plane}`,
    dtype: storage.valueDType,
    shape: [rows, inputs / blockSize],
    blockScale: { outputs: 1, inputs: blockSize },
  });
  const u8Codes: ParameterSpec = {
    ...common,
    name: "weight.codes",
    dtype: "u8",
    shape: [rows, inputs / 2],
    packed: { dim: 1, factor: 2 },
  };
  const codes = execution === "code4" ? u8Codes : i8Codes;
  const rowGroups = execution === "code4" ? 4 : 8;
  const placed: ParameterSpec = inGroups ? { ...codes, rowGroups, scales: "weight.scales" } : codes;
  return [placed, ...planes.map(perBlock)];
}

function bindSegment(
  { storage, parts }: ExecutionSegment,
  weights: LoadedWeights,
  codebooks: Codebooks,
  inGroups: boolean,
): LinearWeight {
  const { kernels } = weights;
  const bind = (name: string): Operand => kernels.bind(weights.tensor(name, parts[0]?.shardId ?? undefined));
  if (storage.kind === "dense") return { format: "dense", matrix: bind("weight") };
  const codes = bind("weight.codes");
  const common = {
    codes,
    scales: bind("weight.scales"),
    minimums: storage.minimums ? bind("weight.minimums") : null,
  };
  if (storage.kind === "rowScales") {
    return { ...common, format: "int8", blockSize: codes.columns, multiplier: storage.multiplier };
  }
  const { execution, blockSize, codebook, multiplier } = storage;
  const placed = { ...common, blockSize, inGroups };
  if (execution === "int8") return { ...placed, format: "int8", multiplier };
  return { ...placed, format: "code4", codebook: codebooks.get(codebook ?? [], weights) };
}
