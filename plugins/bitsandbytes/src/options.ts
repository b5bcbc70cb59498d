/** What a checkpoint's config.json and a user may say. */
import { CheckpointError, describeValue, type JsonObject, OptionError } from "shardloom/plugin";
import { type FourBitType, isFourBitType } from "./codebooks.js";
import { isBlockSize, MAX_BLOCK, MIN_BLOCK } from "./quant-state.js";

/** `quantization_config`, as far as it says more than the tensors do. */
export interface Settings {
  /** `llm_int8_threshold`: magnitude from which an activation is an outlier; 0 for none. */
  readonly outlierThreshold: number;
  /** `llm_int8_skip_modules`; null for bitsandbytes' default. */
  readonly skipModules: readonly string[] | null;
}

/** How activations meet int8 weights. */
export interface Int8Options {
  /** Quantize activations, as bitsandbytes does; otherwise weights are dequantized and activations left as they are. */
  readonly activations: boolean;
  readonly outlierThreshold: number;
}

/** How a checkpoint that is not quantized is quantized while it is loaded. */
export interface InFlightOptions {
  readonly type: FourBitType | "int8";
  readonly blockSize: number;
  readonly doubleQuant: boolean;
  /** What the output head is quantized to, tied to the embedding or not; null where it is a module like others. */
  readonly headType: "int8" | null;
  /** Modules left as they are: entries that equal a component of the name on disk, or a dotted prefix of it. */
  readonly skipModules: readonly string[];
}

const DEFAULT_THRESHOLD = 6;
const DEFAULT_BLOCK_SIZE = 64;
/** What is not quantized unless a user says otherwise. */
export const DEFAULT_SKIP_MODULES: readonly string[] = ["lm_head"];

const INT8_KEYS = ["int8Activations", "outlierThreshold"];
const CHECKPOINT_KEYS = ["blockSize", "doubleQuant"];
const IN_FLIGHT_KEYS = ["type", "blockSize", "doubleQuant", "headType", "skipModules"];

/**
 * Reads `quantization_config`. What it says of the weights is not asked: they say it themselves, one by one. Throws
 * CheckpointError `INVALID_CONFIG`.
 */
export function parseSettings(settings: JsonObject): Settings {
  const invalid = (key: string, expected: string): CheckpointError => {
    const received = describeValue(settings[key]);
    const option = `quantization_config: ${key}`;
    return new CheckpointError(
      "INVALID_CONFIG",
      `config.json: expected ${option} to be ${expected} but received ${received}`,
      {
        file: "config.json",
        option,
        expected,
        received,
      },
    );
  };
  const { load_in_4bit: in4, load_in_8bit: in8 } = settings;
  for (const key of ["load_in_4bit", "load_in_8bit"]) {
    if (typeof (settings[key] ?? false) !== "boolean") throw invalid(key, "true or false");
  }
  if (in4 === true && in8 === true) throw invalid("load_in_8bit", "false, as load_in_4bit is true");
  const threshold = settings["llm_int8_threshold"] ?? DEFAULT_THRESHOLD;
  if (!isThreshold(threshold)) throw invalid("llm_int8_threshold", "a number from 0 on");
  const skipModules = settings["llm_int8_skip_modules"] ?? null;
  if (skipModules !== null && !isStrings(skipModules))
    throw invalid("llm_int8_skip_modules", "null or a list of strings");
  return { outlierThreshold: threshold, skipModules };
}

/** Reads what a user says of int8 weights. Throws OptionError `INVALID_OPTION`. */
export function parseInt8Options(options: JsonObject, settings: Settings): Int8Options {
  const { int8Activations: activations = false, outlierThreshold = settings.outlierThreshold } = options;
  if (typeof activations !== "boolean") throw invalidOption("int8Activations", "true or false", activations);
  if (!isThreshold(outlierThreshold)) throw invalidOption("outlierThreshold", "a number from 0 on", outlierThreshold);
  return { activations, outlierThreshold };
}

/**
 * Reads how to quantize. Throws OptionError `INVALID_OPTION` for a wrong value, or for options that have no meaning for the
 * type; `UNKNOWN_OPTION`.
 */
export function parseInFlightOptions(options: JsonObject): InFlightOptions {
  checkKeys(options, [...IN_FLIGHT_KEYS, ...INT8_KEYS], "");
  const { type = "nf4", blockSize = DEFAULT_BLOCK_SIZE, doubleQuant = false, headType = null } = options;
  // What is skipped by default is the head, of which a type for it says otherwise.
  const { skipModules = headType === null ? DEFAULT_SKIP_MODULES : [] } = options;
  if (!isFourBitType(type) && type !== "int8") throw invalidOption("type", "nf4, fp4 or int8", type);
  const inapplicable = type === "int8" ? ["blockSize", "doubleQuant"] : INT8_KEYS;
  for (const key of inapplicable) {
    if (options[key] !== undefined) throw invalidOption(key, `nothing, as the type is ${type}`, options[key]);
  }
  if (!isBlockSize(blockSize)) {
    throw invalidOption("blockSize", `a power of two from ${MIN_BLOCK} to ${MAX_BLOCK}`, blockSize);
  }
  if (typeof doubleQuant !== "boolean") throw invalidOption("doubleQuant", "true or false", doubleQuant);
  if (headType !== null && headType !== "int8") throw invalidOption("headType", "int8", headType);
  if (!isStrings(skipModules)) throw invalidOption("skipModules", "a list of module names", skipModules);
  return { type, blockSize, doubleQuant, headType, skipModules };
}

/**
 * Reads how a checkpoint is to be quantized into a format. Throws OptionError `UNKNOWN_OPTION`, or `INVALID_OPTION` for a wrong
 * value or one that has no meaning for the format.
 */
export function parseCheckpointOptions(type: InFlightOptions["type"], options: JsonObject): InFlightOptions {
  checkKeys(options, CHECKPOINT_KEYS, ` for ${type}`);
  return parseInFlightOptions({ ...options, type });
}

/**
 * Refuses options that say how to quantize for a checkpoint that is quantized. Throws OptionError `UNKNOWN_OPTION`, or
 * `INVALID_OPTION` where int8 options are given for a checkpoint without int8 weights.
 */
export function checkStoredOptions(options: JsonObject, hasInt8: boolean): void {
  checkKeys(options, INT8_KEYS, " for a checkpoint that is quantized already");
  const [key] = Object.keys(options);
  if (key !== undefined && !hasInt8) {
    throw invalidOption(key, "nothing, as the checkpoint has no int8 weights", options[key]);
  }
}

function checkKeys(options: JsonObject, known: readonly string[], where: string): void {
  const unknown = Object.keys(options).find((key) => !known.includes(key));
  if (unknown === undefined) return;
  const expected = known.join(", ");
  throw new OptionError(
    "UNKNOWN_OPTION",
    `quantization options: expected ${expected}${where} but received ${JSON.stringify(unknown)}`,
    { option: unknown, expected, received: unknown },
  );
}

/** The error of an option whose value cannot be, or not together with others. */
export function invalidOption(option: string, expected: string, value: unknown): OptionError {
  const received = describeValue(value);
  return new OptionError(
    "INVALID_OPTION",
    `quantization option ${option}: expected ${expected} but received ${received}`,
    { option, expected, received },
  );
}

function isThreshold(value: unknown): value is number {
  return typeof value === "number" && value >= 0;
}

function isStrings(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === "string");
}
