/**
 * The quantization config of .gguf files: weights stay in the blocks' own codes, as code4 or int8, at any cut. It works on
 * the checkpoints of this package's model loader alone, whose tensors in block formats it knows by their class.
 */
import {
  type Checkpoint,
  type CheckpointTensor,
  Codebooks,
  ExecutionLinearMethod,
  executionSegments,
  InternalError,
  type LinearLayer,
  type LinearMethod,
  type LinearPart,
  OptionError,
  type QuantizationConfig,
  type QuantizationConfigFactory,
  type QuantizationRequest,
  type ReadGroup,
  UnsupportedError,
} from "shardloom/plugin";
import { BlockTensor } from "./block-tensor.js";
import { METHOD } from "./method.js";
import { isCutInBlocks, PieceSlot, SharedPlanes } from "./shared-planes.js";
import { storageOf, weightOf } from "./storage.js";

/**
 * Throws UnsupportedError `UNSUPPORTED_QUANTIZATION` for a checkpoint that is no .gguf file in block formats, OptionError
 * `UNKNOWN_OPTION` for options: there are none.
 */
export const ggufQuantization: QuantizationConfigFactory = {
  create(request) {
    checkRequest(request);
    return new GgufQuantizationConfig(request);
  },
};

class GgufQuantizationConfig implements QuantizationConfig {
  readonly name = METHOD;
  /** Null once the layers have been made: nothing of a checkpoint is kept beyond its loading. */
  #source: Checkpoint | null;
  #view: WeakRef<Checkpoint> | null = null;
  readonly #codebooks = new Codebooks();
  /** Block size in which a layer takes the codes of a tensor, by the tensor's name. */
  readonly #taken = new Map<string, number>();
  /** Tensors that ranks take apart together. */
  readonly #together = new Set<string>();
  readonly #group: ReadGroup | undefined;

  constructor({ checkpoint, group }: QuantizationRequest) {
    this.#source = checkpoint;
    this.#group = group;
  }

  linearMethod(layer: LinearLayer): LinearMethod | null {
    const source = this.#source;
    if (source === null) throw new InternalError(`${layer.prefix} was made after the checkpoint had been asked for`);
    if (!layer.parts.some((part) => source.tensors.get(weightOf(part)) instanceof BlockTensor)) return null;
    const segments = executionSegments(layer, (part) => {
      const storage = storageOf(layer, part, source);
      const name = weightOf(part);
      if (storage.kind !== "blocks") return storage;
      this.#taken.set(name, storage.blockSize);
      const tensor = source.tensors.get(name);
      if (tensor instanceof BlockTensor && isCutInBlocks(layer, tensor.blockElements)) this.#together.add(name);
      return storage;
    });
    // Not a function that tells: the method lives on, and would hold the checkpoint.
    const readInGroups = new Set<LinearPart>();
    for (const part of layer.parts) {
      const tensor = source.tensors.get(weightOf(part));
      if (!(tensor instanceof BlockTensor) || !tensor.readsRowGroups || this.#together.has(tensor.name)) continue;
      readInGroups.add(part);
    }
    return new ExecutionLinearMethod(segments, this.#codebooks, readInGroups);
  }

  /**
   * The file, with codes, scales and minimums in the place of each matrix whose layer takes them. Made when it is first
   * asked for; whoever loads holds it.
   */
  get checkpoint(): Checkpoint {
    if (this.#source !== null) {
      const view = this.#viewOf(this.#source);
      this.#view = new WeakRef(view);
      this.#source = null;
      return view;
    }
    const view = this.#view?.deref();
    if (view === undefined)
      throw new InternalError("the checkpoint of a quantization config was asked for after loading");
    return view;
  }

  #viewOf(source: Checkpoint): Checkpoint {
    const tensors = new Map<string, CheckpointTensor>();
    const slot = new PieceSlot();
    const planesOf = (tensor: BlockTensor, blockSize: number): readonly CheckpointTensor[] => {
      const planes = tensor.planes(blockSize);
      const group = this.#together.has(tensor.name) ? this.#group : undefined;
      return group === undefined ? planes : new SharedPlanes(planes, group, slot).tensors;
    };
    for (const tensor of source.tensors.values()) {
      const blockSize = this.#taken.get(tensor.name);
      const replacing =
        tensor instanceof BlockTensor && blockSize !== undefined ? planesOf(tensor, blockSize) : [tensor];
      for (const one of replacing) tensors.set(one.name, one);
    }
    return {
      tensors,
      get bytesRead() {
        return source.bytesRead;
      },
      close: () => source.close(),
    };
  }
}

function checkRequest({ options, checkpoint }: QuantizationRequest): void {
  if (![...checkpoint.tensors.values()].some((tensor) => tensor instanceof BlockTensor)) {
    const [first] = checkpoint.tensors.values();
    const file = first?.file ?? "the checkpoint";
    throw new UnsupportedError(
      "UNSUPPORTED_QUANTIZATION",
      `${file}: expected a .gguf file with quantized weights for quantization "${METHOD}", which keeps what is in the file ` +
        "and quantizes nothing itself, but received none",
      { file, expected: "quantized weights of a .gguf file", received: "none" },
    );
  }
  const [option] = Object.keys(options);
  if (option === undefined) return;
  throw new OptionError(
    "UNKNOWN_OPTION",
    `expected no options for quantization "${METHOD}" but received ${JSON.stringify(option)}`,
    { option, expected: "none", received: option },
  );
}
