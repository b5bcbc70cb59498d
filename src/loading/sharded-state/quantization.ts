/**
 * The quantization config of sharded states: weights that are in execution formats already, at any cut. What a rank owns is
 * loaded as it is, or in finer blocks with the same scales, or as the values that the codes stand for, where kernels take no
 * blocks as small as its cut would need.
 */
import type { Checkpoint, CheckpointTensor } from "../../checkpoint/checkpoint.js";
import { isFloat } from "../../core/dtype.js";
import { InternalError, invariant, UnsupportedError } from "../../core/errors.js";
import type {
  LinearLayer,
  LinearMethod,
  LinearPart,
  QuantizationConfig,
  QuantizationConfigFactory,
} from "../../quantization/contract.js";
import {
  Codebooks,
  ExecutionLinearMethod,
  type ExecutionStorage,
  executionSegments,
} from "../../quantization/execution-linear-method.js";
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
    const segments = executionSegments(layer, (part) => {
      const storage = storageOf(state, layer, part);
      if (storage.kind !== "dense") this.#taken.set(part.prefix, storage);
      return storage;
    });
    return new ExecutionLinearMethod(segments, this.#codebooks);
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

function storageOf(state: ShardedState, layer: LinearLayer, part: LinearPart): ExecutionStorage {
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
