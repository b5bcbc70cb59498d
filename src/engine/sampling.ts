/**
 * How a request wants its tokens chosen: the options as users give them, checked and resolved to plain numbers. The
 * drawing itself happens on rank 0 (rank/sampler.ts).
 *
 * The default is greedy, for every model: temperature, top-p and top-k of a generation_config.json are not applied, so
 * that the same request gives the same answer everywhere unless its author asks for chance.
 */
import { describeValue, OptionError } from "../core/errors.js";

/** Sampling options of a request. Everything left out takes its default. */
export interface SamplingOptions {
  /** Most tokens to generate, at least 1. Default, and upper limit: what the context has room for. */
  readonly maxTokens?: number | undefined;
  /** 0 (default) takes the likeliest token; otherwise logits are divided by it, up to 100. */
  readonly temperature?: number | undefined;
  /** Draw from the k likeliest tokens only; 0 (default) for all. */
  readonly topK?: number | undefined;
  /** Draw from the smallest set of likeliest tokens whose probabilities reach this sum, in (0, 1]. Default 1: all. */
  readonly topP?: number | undefined;
  /** Draw from tokens at least this fraction as likely as the likeliest, in [0, 1]. Default 0: all. */
  readonly minP?: number | undefined;
  /** 0 .. 2^32 - 1; fixes every draw of the request. Default: a random one, reported with the first delta. */
  readonly seed?: number | undefined;
  /** Texts that end the answer, at most 16 of at most 1024 UTF-16 units. Not part of the answer. */
  readonly stop?: string | readonly string[] | undefined;
  /** Token ids that end the answer, besides the model's own end-of-sequence tokens; at most 256. */
  readonly stopTokenIds?: readonly number[] | undefined;
  /** Go on after end-of-sequence tokens. Default false. */
  readonly ignoreEndOfSequence?: boolean | undefined;
  /** Report each token's log-probability and those of this many likeliest tokens. Default: report none. */
  readonly logprobs?: number | undefined;
  /** Leave the stop text, or the token that ended the answer, in the text. Default false. */
  readonly includeStopString?: boolean | undefined;
  /** Leave special tokens (`<|im_end|>`) out of the text. Default true. */
  readonly skipSpecialTokens?: boolean | undefined;
}

/** Resolved options of one request. */
export interface SamplingParams {
  /** At least 1, and within the context. */
  readonly maxTokens: number;
  readonly temperature: number;
  /** 0 for all. */
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  /** 0 .. 2^32 - 1; 0 when greedy, where nothing is drawn. */
  readonly seed: number;
  readonly stop: readonly string[];
  /** Every token id that ends the answer. */
  readonly endTokenIds: ReadonlySet<number>;
  /** Alternatives to report per token; -1 for not even the chosen token's log-probability. */
  readonly logprobs: number;
  readonly includeStopString: boolean;
  readonly skipSpecialTokens: boolean;
}

/** What the engine knows when it resolves the options of a request. */
export interface SamplingLimits {
  readonly vocabularySize: number;
  /** Most alternatives a step can report per token. */
  readonly maxLogprobs: number;
  /** Tokens the context has room for after the prompt; at least 1. */
  readonly room: number;
  readonly endOfSequenceIds: readonly number[];
  /** Without a tokenizer there is no text, and so no stop text. */
  readonly hasTokenizer: boolean;
  /** Draws a seed, 0 .. 2^32 - 1. */
  readonly drawSeed: () => number;
}

export const MAX_STOP_STRINGS = 16;
export const MAX_STOP_STRING_LENGTH = 1024;
export const MAX_STOP_TOKEN_IDS = 256;
export const MAX_TEMPERATURE = 100;
const MAX_INT32 = 2 ** 31 - 1;
const MAX_SEED = 2 ** 32 - 1;

type OptionName = keyof SamplingOptions;

const optionNames: Readonly<Record<OptionName, true>> = {
  maxTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  seed: true,
  stop: true,
  stopTokenIds: true,
  ignoreEndOfSequence: true,
  logprobs: true,
  includeStopString: true,
  skipSpecialTokens: true,
};

/** Checks options and fills in defaults. Throws OptionError `INVALID_SAMPLING_OPTION` naming the option. */
export function resolveSampling(options: SamplingOptions, limits: SamplingLimits): SamplingParams {
  checkNames(options);
  const { vocabularySize, maxLogprobs, room } = limits;
  const temperature = real("temperature", options.temperature, 0, `0 to ${MAX_TEMPERATURE}`, (value) => {
    return value >= 0 && value <= MAX_TEMPERATURE;
  });
  const topK = whole("topK", options.topK, 0, MAX_INT32) ?? 0;
  const seed = whole("seed", options.seed, 0, MAX_SEED);
  const logprobs = whole("logprobs", options.logprobs, 0, maxLogprobs);
  return {
    maxTokens: Math.min(whole("maxTokens", options.maxTokens, 1, MAX_INT32) ?? room, room),
    temperature,
    topK: topK >= vocabularySize ? 0 : topK,
    // Compared as the step stores it, in single precision.
    topP: real("topP", options.topP, 1, "above 0 and at most 1", (value) => Math.fround(value) > 0 && value <= 1),
    minP: real("minP", options.minP, 0, "0 to 1", (value) => value >= 0 && value <= 1),
    seed: temperature === 0 ? 0 : (seed ?? limits.drawSeed()),
    stop: stopStrings(options.stop, limits.hasTokenizer),
    endTokenIds: new Set([
      ...(flag("ignoreEndOfSequence", options.ignoreEndOfSequence, false) ? [] : limits.endOfSequenceIds),
      ...stopTokenIds(options.stopTokenIds, vocabularySize),
    ]),
    logprobs: logprobs === undefined ? -1 : Math.min(logprobs, vocabularySize),
    includeStopString: flag("includeStopString", options.includeStopString, false),
    skipSpecialTokens: flag("skipSpecialTokens", options.skipSpecialTokens, true),
  };
}

/** A misspelt option would otherwise be ignored in silence. */
function checkNames(options: SamplingOptions): void {
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw new OptionError(
      "INVALID_SAMPLING_OPTION",
      `expected sampling to be an object but received ${describeValue(options)}`,
      { option: "sampling", expected: "object", received: describeValue(options) },
    );
  }
  const known = Object.keys(optionNames).join(", ");
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(optionNames, name)) continue;
    throw new OptionError(
      "INVALID_SAMPLING_OPTION",
      `expected sampling options among ${known} but received ${JSON.stringify(name)}`,
      { option: name, expected: known, received: name },
    );
  }
}

function whole(option: OptionName, value: unknown, least: number, most: number): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "number" && Number.isInteger(value) && value >= least && value <= most) return value;
  throw invalid(option, `a whole number from ${least} to ${most}`, value);
}

function real(
  option: OptionName,
  value: unknown,
  fallback: number,
  expected: string,
  accepts: (value: number) => boolean,
): number {
  if (value === undefined) return fallback;
  if (typeof value === "number" && accepts(value)) return value;
  throw invalid(option, `a number ${expected}`, value);
}

function flag(option: OptionName, value: unknown, fallback: boolean): boolean {
  if (value === undefined) return fallback;
  if (typeof value === "boolean") return value;
  throw invalid(option, "true or false", value);
}

function stopStrings(value: unknown, hasTokenizer: boolean): readonly string[] {
  if (value === undefined) return [];
  const values: readonly unknown[] = Array.isArray(value) ? value : [value];
  if (values.length > MAX_STOP_STRINGS) throw invalid("stop", `at most ${MAX_STOP_STRINGS} texts`, value);
  const strings = values.map((text) => {
    if (typeof text !== "string") throw invalid("stop", "a text, or an array of texts", text);
    if (text.length === 0 || text.length > MAX_STOP_STRING_LENGTH) {
      throw invalid("stop", `texts of 1 to ${MAX_STOP_STRING_LENGTH} UTF-16 units`, text.slice(0, 20));
    }
    if (/\p{Surrogate}/u.test(text)) throw invalid("stop", "well-formed texts, without lone surrogates", text);
    return text;
  });
  if (strings.length > 0 && !hasTokenizer) throw invalid("stop", "left out, as this model has no tokenizer", value);
  return [...new Set(strings)];
}

function stopTokenIds(value: unknown, vocabularySize: number): readonly number[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalid("stopTokenIds", "an array of token ids", value);
  if (value.length > MAX_STOP_TOKEN_IDS) throw invalid("stopTokenIds", `at most ${MAX_STOP_TOKEN_IDS} ids`, value);
  return value.map((id: unknown) => {
    if (typeof id === "number" && Number.isInteger(id) && id >= 0 && id < vocabularySize) return id;
    throw invalid("stopTokenIds", `token ids from 0 to ${vocabularySize - 1}`, id);
  });
}

function invalid(option: OptionName, expected: string, value: unknown): OptionError {
  const received = describeValue(value);
  return new OptionError(
    "INVALID_SAMPLING_OPTION",
    `expected sampling option ${option} to be ${expected} but received ${received}`,
    { option, expected, received },
  );
}
