/** The quantization config: which layers of one rank are quantized, how, and from what they are loaded. */
import {
  type Checkpoint,
  type CheckpointTensor,
  elementCount,
  InternalError,
  isFloat,
  type LinearLayer,
  type LinearMethod,
  type LinearPart,
  type QuantizationConfig,
  type QuantizationConfigFactory,
  type QuantizationRequest,
  type ReadGroup,
} from "shardloom/plugin";
import { InFlightEightBit, InFlightFourBit } from "./in-flight.js";
import { Int8ActivationMethod } from "./int8-activation-method.js";
import { QuantizedLinearMethod } from "./linear-method.js";
import {
  checkStoredOptions,
  type InFlightOptions,
  type Int8Options,
  invalidOption,
  parseInFlightOptions,
  parseInt8Options,
  parseSettings,
  type Settings,
} from "./options.js";
import { type QuantizedWeight, TableSlot } from "./quantized-weight.js";
import { RankResources } from "./rank-resources.js";
import { planSegments, type Segment } from "./segments.js";
import { SharedEightBit, SharedFourBit } from "./shared-in-flight.js";
import { compareSkips, skips } from "./skip-modules.js";
import { findStoredWeights } from "./stored-weights.js";
import { claim, createView, type Forms } from "./view.js";

/** The name of the method, in config.json and for users. */
export const METHOD = "bitsandbytes";

/** Code of the warning that a skip list and the tensors of a checkpoint disagree. */
export const SKIP_LIST_WARNING = "BITSANDBYTES_SKIP_LIST";

/** Throws CheckpointError for a checkpoint whose tensors do not fit together, OptionError for options it does not take. */
export const bitsandbytes: QuantizationConfigFactory = { create: (request) => new BitsAndBytesConfig(request) };

/** What is known of a checkpoint until its layers have been made. */
interface Planning {
  readonly source: Checkpoint;
  /** Grows by the weights that are quantized in flight. */
  readonly weights: Map<string, QuantizedWeight>;
  readonly sidecars: ReadonlySet<string>;
  readonly forms: Forms;
  readonly slot: TableSlot;
  /** The ranks that load together; undefined for a rank that loads alone. */
  readonly group: ReadGroup | undefined;
}

class BitsAndBytesConfig implements QuantizationConfig {
  readonly name = METHOD;
  readonly #settings: Settings;
  readonly #int8: Int8Options;
  /** Null where nothing is quantized in flight. */
  readonly #inFlight: InFlightOptions | null;
  readonly #resources = new RankResources();
  /** Linear modules on rank 0, by whether they are quantized. */
  readonly #modules = { quantized: new Set<string>(), plain: new Set<string>() };
  #hasHead = false;
  /** Null once the layers have been made: nothing of a checkpoint is kept beyond its loading. */
  #planning: Planning | null;
  #view: WeakRef<Checkpoint> | null = null;

  constructor({ origin, settings, options, checkpoint, group }: QuantizationRequest) {
    const slot = new TableSlot();
    const stored = findStoredWeights(checkpoint, slot, group);
    this.#settings = parseSettings(settings);
    this.#inFlight = origin === "user" ? parseInFlightOptions(options) : null;
    if (origin === "checkpoint") {
      checkStoredOptions(
        options,
        [...stored.weights.values()].some(({ format }) => format === "int8"),
      );
    }
    this.#int8 = parseInt8Options(options, this.#settings);
    const weights = new Map(stored.weights);
    this.#planning = { source: checkpoint, weights, sidecars: stored.sidecars, forms: new Map(), slot, group };
  }

  linearMethod(layer: LinearLayer): LinearMethod | null {
    const planning = this.#planning;
    if (planning === null) throw new InternalError(`${layer.prefix} was made after the checkpoint had been asked for`);
    const segments = planSegments(layer, (_, part) => this.#weightOf(planning, layer, part));
    this.#note(layer, segments);
    this.#hasHead ||= layer.isHead ?? false;
    if (segments.every(({ storage }) => storage.kind === "plain")) return null;
    for (const segment of segments) claim(planning.forms, segment, layer);
    // A head that has a type of its own is weights in fewer bytes, no step of LLM.int8's arithmetic.
    const isCodedHead = layer.isHead === true && (this.#inFlight?.headType ?? null) !== null;
    if (this.#int8.activations && !isCodedHead && segments.some(({ storage }) => storage.kind === "int8")) {
      return new Int8ActivationMethod(segments, this.#resources, this.#int8.outlierThreshold);
    }
    return new QuantizedLinearMethod(segments, this.#resources);
  }

  /**
   * Made when it is first asked for. Whoever loads holds it; the config and the methods of layers hold neither it nor the
   * checkpoint below it, so that both go when loading is done.
   */
  get checkpoint(): Checkpoint {
    const planning = this.#planning;
    if (planning !== null) {
      this.#planning = null;
      this.#checkHead();
      this.#warnOfSkips();
      const view = createView(planning);
      this.#view = new WeakRef(view);
      return view;
    }
    const view = this.#view?.deref();
    if (view === undefined)
      throw new InternalError("the checkpoint of a quantization config was asked for after loading");
    return view;
  }

  /** The quantized weight that holds a part: that of its own name, or the layer's, where the part is fused on disk. */
  #weightOf(planning: Planning, layer: LinearLayer, part: LinearPart): QuantizedWeight | null | undefined {
    const { source, weights } = planning;
    const own = `${part.prefix}.weight`;
    const name = source.tensors.has(own) ? own : `${layer.prefix}.weight`;
    const tensor = source.tensors.get(name);
    if (tensor === undefined) return undefined;
    const known = weights.get(name);
    if (known !== undefined) return known;
    const quantized = this.#quantizeInFlight(planning, layer, tensor, moduleOf(name));
    if (quantized !== null) weights.set(name, quantized);
    return quantized;
  }

  #quantizeInFlight(
    planning: Planning,
    layer: LinearLayer,
    tensor: CheckpointTensor,
    module: string,
  ): QuantizedWeight | null {
    const options = this.#inFlight;
    if (options === null || !isFloat(tensor.dtype)) return null;
    const type = typeFor(layer, module, options);
    if (type === null) return null;
    const { slot, group } = planning;
    const { blockSize, doubleQuant } = options;
    const isShared = group !== undefined && elementCount(tensor.shape) >= group.reads.leastBytes;
    // Columns of its own are no reason for a rank to quantize whole rows, nor whole blocks, by itself.
    const columnsGroup = isShared && layer.kind === "row" ? group : null;
    if (type === "int8") {
      return columnsGroup === null
        ? new InFlightEightBit(tensor, slot)
        : new SharedEightBit(tensor, slot, columnsGroup);
    }
    const fourBit = { type, blockSize, doubleQuant };
    const shared = isShared && doubleQuant ? group : columnsGroup;
    return shared === null
      ? new InFlightFourBit(tensor, fourBit, slot)
      : new SharedFourBit(tensor, fourBit, slot, shared);
  }

  /** Throws OptionError `INVALID_OPTION` for a type of a head that no layer is. */
  #checkHead(): void {
    const headType = this.#inFlight?.headType ?? null;
    if (headType === null || this.#hasHead) return;
    throw invalidOption("headType", "nothing, as no layer of this model says that it is an output head", headType);
  }

  #note(layer: LinearLayer, segments: readonly Segment[]): void {
    if (layer.rank !== 0 || layer.kind === "embedding" || this.#inFlight !== null) return;
    for (const { storage, parts, weights } of segments) {
      const names =
        storage.kind === "plain" ? parts.map(({ prefix }) => prefix) : weights.map(({ name }) => moduleOf(name));
      for (const name of names) this.#modules[storage.kind === "plain" ? "plain" : "quantized"].add(name);
    }
  }

  /** Once an engine: every rank reads the same checkpoint. */
  #warnOfSkips(): void {
    const { quantized, plain } = this.#modules;
    const difference = compareSkips(this.#settings.skipModules, [...quantized], [...plain]);
    if (difference !== null) process.emitWarning(difference, { type: "ShardloomWarning", code: SKIP_LIST_WARNING });
  }
}

/** What a float weight is quantized to; null where it is left as it is. Throws OptionError `INVALID_OPTION`. */
function typeFor(
  { kind, isHead }: LinearLayer,
  module: string,
  { type, headType, skipModules }: InFlightOptions,
): InFlightOptions["type"] | null {
  const isSkipped = skips(skipModules, module);
  if (isHead === true && headType !== null) {
    // A head that is tied to the embedding goes by either name.
    if (!isSkipped && !skips(skipModules, "lm_head")) return headType;
    throw invalidOption("headType", "nothing, as skipModules names the output head", headType);
  }
  return kind === "embedding" || isSkipped ? null : type;
}

const moduleOf = (weight: string): string => weight.slice(0, -".weight".length);
