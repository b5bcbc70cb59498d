/**
 * The quantization config of sharded states: weights that are in execution formats already, at any cut. What a rank owns is
 * loaded as it is, or in finer blocks with the same scales, or as the values that the codes stand for, where kernels take no
 * blocks as small as its cut would need.
 */
import type { Checkpoint, CheckpointTensor } from "../../checkpoint/checkpoint.js";
import { type FloatDType, isFloat } from "../../core/dtype.js";
import { InternalError, invariant, UnsupportedError } from "../../core/errors.js";
import type { Operand } from "../../core/operand.js";
import { f32Of } from "../../core/tensor.js";
import type { Kernels, LinearWeight } from "../../kernels/kernels.js";
import { rangeSize } from "../../parallel/partition.js";
import type {
  ExecutionWeight,
  LinearLayer,
  LinearMethod,
  LinearPart,
  LoadedWeights,
  ParameterSpec,
  QuantizationConfig,
  QuantizationConfigFactory,
  WeightCreation,
} from "../../quantization/contract.js";
import { type CodesView, ShardedState } from "./sharded-state.js";

/** `quant_method` of a state whose weights are not all plain floating-point numbers. */
export const STATE_METHOD = "shardloom_state";

/** Throws UnsupportedError `UNSUPPORTED_QUANTIZATION` for a checkpoint that is no sharded state. */
export const stateQuantization: QuantizationConfigFactory = {
  create({ checkpoint }) {
    if (checkpoint instanceof ShardedState) return new StateQuantizationConfig(checkpoint);
    const file = [...checkpoint.tensors.values()][0]?.file ?? "the checkpoint";
    throw new UnsupportedError(
      "UNSUPPORTED_QUANTIZATION",
      `${file}: expected a sharded state for quantization "${STATE_METHOD}" but received another checkpoint`,
      { file, expected: "a sharded state", received: "another checkpoint" },
    );
  },
};

/** How a rank stores a matrix. */
type Storage = { readonly kind: "dense"; readonly dtype: FloatDType } | CodesView;

/** Neighbouring matrices of a layer in the same storage. */
interface Segment {
  readonly storage: Storage;
  readonly parts: readonly LinearPart[];
  readonly firstRow: number;
  readonly rows: number;
}

class StateQuantizationConfig implements QuantizationConfig {
  readonly name = STATE_METHOD;
  /** Null once the layers have been made: nothing of a checkpoint is kept beyond its loading. */
  #state: ShardedState | null;
  #view: WeakRef<Checkpoint> | null = null;
  readonly #taken = new Map<string, CodesView>();
  readonly #codebooks = new Codebooks();

  constructor(state: ShardedState) {
    this.#state = state;
  }

  linearMethod(layer: LinearLayer): LinearMethod {
    const state = this.#state;
    if (state === null) throw new InternalError(`${layer.prefix} was made after the checkpoint had been asked for`);
    const segments: Segment[] = [];
    for (const part of layer.parts) {
      const storage = storageOf(state, layer, part);
      if (storage.kind !== "dense") this.#taken.set(part.prefix, storage);
      const rows = rangeSize(part.rows);
      const last = segments.at(-1);
      if (last !== undefined && JSON.stringify(last.storage) === JSON.stringify(storage)) {
        segments[segments.length - 1] = { ...last, parts: [...last.parts, part], rows: last.rows + rows };
      } else segments.push({ storage, parts: [part], firstRow: part.localOffset, rows });
    }
    return new StateLinearMethod(segments, this.#codebooks);
  }

  /** The state, with codes, scales and minimums in the place of each matrix whose layer takes them. */
  get checkpoint(): Checkpoint {
    if (this.#state !== null) {
      const view = viewOf(this.#state, this.#taken);
      this.#view = new WeakRef(view);
      this.#state = null;
      return view;
    }
    const view = this.#view?.deref();
    invariant(view !== undefined, "the checkpoint of a quantization config was asked for after loading");
    return view;
  }
}

function storageOf(state: ShardedState, layer: LinearLayer, part: LinearPart): Storage {
  // One that is missing is missed when the layer is loaded.
  if (state.matrix(part.prefix) === undefined) return { kind: "dense", dtype: layer.dtype };
  const stored = state.denseDType(part.prefix);
  if (stored !== null && isFloat(stored)) {
    // Unquantized weights may be wanted in another dtype than they were saved in; values of codes are what they are.
    return { kind: "dense", dtype: stored === state.manifest.dtype ? layer.dtype : stored };
  }
  return state.codesView(part.prefix, layer.inputs) ?? { kind: "dense", dtype: "f32" };
}

function viewOf(state: ShardedState, taken: ReadonlyMap<string, CodesView>): Checkpoint {
  const tensors = new Map<string, CheckpointTensor>();
  for (const tensor of state.tensors.values()) {
    const name = tensor.name.replace(/\.weight$/, "");
    const view = taken.get(name);
    const replacing = view === undefined || state.matrix(name) === undefined ? [tensor] : state.planes(name, view);
    for (const one of replacing) tensors.set(one.name, one);
  }
  return {
    tensors,
    get bytesRead() {
      return state.bytesRead;
    },
    close: () => state.close(),
  };
}

/** The codebooks of one rank, by their entries. Layers share them. */
class Codebooks {
  readonly #operands = new Map<string, Operand>();

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

class StateLinearMethod implements LinearMethod {
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

function parametersOf({ storage, parts, rows }: Segment, layer: LinearLayer, several: boolean): ParameterSpec[] {
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
  return [execution === "code4" ? u8Codes : i8Codes, ...planes.map(perBlock)];
}

function bindSegment({ storage, parts }: Segment, weights: LoadedWeights, codebooks: Codebooks): LinearWeight {
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
  if (execution === "int8") return { ...common, format: "int8", blockSize, multiplier };
  return { ...common, format: "code4", blockSize, codebook: codebooks.get(codebook ?? [], weights) };
}
