/**
 * The linear method of weights in block formats. What is in the file becomes an execution format by being loaded: the
 * view of the checkpoint (quantization.ts) lays codes and scales out as kernels take them. Nothing is repacked, nothing
 * is rounded.
 */
import {
  type ExecutionWeight,
  f32Of,
  InternalError,
  type Kernels,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type LoadedWeights,
  type Operand,
  type ParameterSpec,
  rangeSize,
  type WeightCreation,
} from "shardloom/plugin";
import type { Segment } from "./segments.js";

/** The 4-bit codebooks of one rank, by the code of the value 0. Layers share them. */
export class Codebooks {
  readonly #operands = new Map<number, Operand>();

  /** f32 `[16]`: entry `code` is `code - zero`. */
  get(zero: number, { kernels, allocate }: LoadedWeights): Operand {
    const existing = this.#operands.get(zero);
    if (existing !== undefined) return existing;
    const tensor = allocate(`codebook${zero}`, "f32", [16]);
    f32Of(tensor).forEach((_, code, entries) => {
      entries[code] = code - zero;
    });
    const operand = kernels.bind(tensor);
    this.#operands.set(zero, operand);
    return operand;
  }
}

export class BlockLinearMethod implements LinearMethod {
  readonly #segments: readonly Segment[];
  readonly #codebooks: Codebooks;
  #weights: readonly ExecutionWeight[] = [];

  constructor(segments: readonly Segment[], codebooks: Codebooks) {
    this.#segments = segments;
    this.#codebooks = codebooks;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const several = this.#segments.length > 1;
    for (const segment of this.#segments) {
      for (const spec of parametersOf(segment, layer, several)) creation.addParameter(spec);
    }
  }

  processWeightsAfterLoading(weights: LoadedWeights): void {
    this.#weights = this.#segments.map((segment) => {
      const weight = weights.kernels.prepareLinear(bindSegment(segment, weights, this.#codebooks));
      return { firstRow: segment.firstRow, weight };
    });
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.#weights.length === 0)
      throw new InternalError("a linear layer was used before its weights were processed");
    for (const { firstRow, weight } of this.#weights) kernels.linear(out, x, weight, bias, rows, firstRow);
  }

  embed(kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    const [table, ...others] = this.#weights;
    if (table === undefined || others.length > 0) {
      throw new InternalError(`expected an embedding of one weight but it has ${this.#weights.length}`);
    }
    kernels.embedding(out, ids, table.weight, rows, firstId);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weights;
  }
}

/** What a segment loads. `several`: it is not the whole of its layer. */
function parametersOf({ storage, parts, rows }: Segment, layer: LinearLayer, several: boolean): ParameterSpec[] {
  const inputs = rangeSize(layer.inputs);
  const shardIds = parts.map(({ shardId }) => shardId).filter((shardId) => shardId !== null);
  const common = { ...(several ? { parts: shardIds } : {}), outputDim: 0, inputDim: 1 };
  const matrix = { ...common, name: "weight", shape: [rows, inputs] };
  if (storage.kind === "plain") return [{ ...matrix, dtype: layer.dtype }];
  if (storage.kind === "values") return [{ ...matrix, dtype: "f32" }];
  const { execution, blockSize, hasMinimums, valueDType } = storage;
  const perBlock = (name: string): ParameterSpec => {
    return {
      ...common,
      name,
      dtype: valueDType,
      shape: [rows, inputs / blockSize],
      blockScale: { outputs: 1, inputs: blockSize },
    };
  };
  const codes: ParameterSpec =
    execution === "code4"
      ? { ...common, name: "weight.codes", dtype: "u8", shape: [rows, inputs / 2], packed: { dim: 1, factor: 2 } }
      : { ...common, name: "weight.codes", dtype: "i8", shape: [rows, inputs] };
  return [codes, perBlock("weight.scales"), ...(hasMinimums ? [perBlock("weight.minimums")] : [])];
}

function bindSegment({ storage, parts }: Segment, weights: LoadedWeights, codebooks: Codebooks): LinearWeight {
  const { kernels } = weights;
  const bind = (name: string): Operand => kernels.bind(weights.tensor(name, parts[0]?.shardId ?? undefined));
  if (storage.kind !== "blocks") return { format: "dense", matrix: bind("weight") };
  const common = {
    codes: bind("weight.codes"),
    scales: bind("weight.scales"),
    minimums: storage.hasMinimums ? bind("weight.minimums") : null,
    blockSize: storage.blockSize,
  };
  return storage.execution === "code4"
    ? { ...common, format: "code4", codebook: codebooks.get(storage.zero, weights) }
    : { ...common, format: "int8", multiplier: 1 };
}
