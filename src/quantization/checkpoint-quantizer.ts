/**
 * The contract between `shardloom quantize` and a format to quantize into. The core decides which tensors are weights of
 * linear modules, reads them, and writes what takes their place; the format says what that is. A plan is made anew in every
 * thread that takes part, from the same request, and must say the same in each.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { describeValue, OptionError, PluginError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";

/** What a plan is made from. Plain data: it crosses threads. */
export interface CheckpointQuantizationRequest {
  /** What the user asked for; keys are the format's. */
  readonly options: JsonObject;
  /** Modules to leave as they are: names of linear modules of the checkpoint. Null for the format's own choice. */
  readonly skipModules: readonly string[] | null;
}

/** A tensor that is computed when it is read. */
export interface QuantizedTensor extends Pick<CheckpointTensor, "name" | "dtype" | "shape" | "read"> {
  /**
   * For a tensor whose size depends on what is quantized: `shape` is the largest it may have, and this tells the one it
   * has, after all tensors before it have been read. Meant for what is small.
   */
  readonly settledShape?: () => readonly number[];
}

/** How one checkpoint is quantized. */
export interface CheckpointQuantizationPlan {
  /**
   * `quantization_config` of the new config.json, the text of a JSON object: text, because readers in other languages
   * tell 6.0 from 6.
   */
  readonly settings: string;
  /**
   * What takes the place of the weight of a linear module, or null where it stays as it is. Reads nothing yet. The tensors
   * are read in the order given, each from its beginning to its end, in pieces; that the weight then is read once is up
   * to the format.
   */
  replace(weight: CheckpointTensor): readonly QuantizedTensor[] | null;
}

/** A format that checkpoints can be quantized into, as a plugin registers it. */
export interface CheckpointQuantizer {
  /** Throws ShardloomError for options that it does not take. */
  plan(request: CheckpointQuantizationRequest): CheckpointQuantizationPlan;
}

/** A registered format. */
export interface RegisteredQuantizer {
  readonly quantizer: CheckpointQuantizer;
  /** Package that registered it. */
  readonly owner: string;
}

/** Formats to quantize into by name, as plugins registered them. Filled alike in every thread. */
export class CheckpointQuantizerRegistry {
  readonly #entries = new Map<string, RegisteredQuantizer>();

  /**
   * Registers a format. The same object twice is a no-op. Throws PluginError `INVALID_CHECKPOINT_QUANTIZER` for one that is
   * no quantizer, `DUPLICATE_REGISTRATION`, naming both owners, for another one under a taken name.
   */
  register(format: string, quantizer: CheckpointQuantizer, owner: string): void {
    checkQuantizer(format, quantizer, owner);
    const existing = this.#entries.get(format);
    if (existing?.quantizer === quantizer) return;
    if (existing !== undefined) {
      throw new PluginError(
        "DUPLICATE_REGISTRATION",
        `checkpoint quantizer "${format}": ${owner} cannot register it because ${existing.owner} already has`,
        { plugin: owner, expected: existing.owner, received: owner },
      );
    }
    this.#entries.set(format, { quantizer, owner });
  }

  /** Registered formats, in order. */
  get formats(): readonly string[] {
    return [...this.#entries.keys()];
  }

  /** Throws OptionError `UNKNOWN_QUANTIZATION_FORMAT`, listing those that are registered. */
  select(format: string): RegisteredQuantizer {
    const entry = this.#entries.get(format);
    if (entry !== undefined) return entry;
    const known = this.formats.join(", ") || "none is registered";
    throw new OptionError(
      "UNKNOWN_QUANTIZATION_FORMAT",
      `expected a format to quantize into (${known}) but received ${JSON.stringify(format)}; a plugin that brings it is named with --plugin`,
      { option: "format", expected: known, received: format },
    );
  }
}

/** What a plugin in plain JavaScript hands over may be anything. */
function checkQuantizer(format: unknown, quantizer: unknown, owner: string): void {
  const named = typeof format === "string" && format !== "";
  const plans =
    typeof quantizer === "object" && quantizer !== null && typeof Reflect.get(quantizer, "plan") === "function";
  if (named && plans) return;
  throw new PluginError(
    "INVALID_CHECKPOINT_QUANTIZER",
    `${owner}: expected a name and a checkpoint quantizer with plan() but received ${describeValue(format)} and ${describeValue(quantizer)}`,
    { plugin: owner },
  );
}
