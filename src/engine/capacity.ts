/**
 * How much an engine is sized for: the longest sequence, the tokens of a step, the blocks of KV cache. Decided once,
 * from the model, the user's options and the machine's memory, and told to every rank alike.
 */
import { OptionError } from "../core/errors.js";
import { readMemory, usableBytes } from "../core/machine-memory.js";
import { type KvCacheDType, kvPositionBytes } from "../kernels/kv-cache-dtype.js";
import type { ModelConfig } from "../models/model.js";
import { cdiv, splitHeads } from "../parallel/partition.js";
import type { StepLimits } from "../rank/step.js";

/** What a user may say about sizes; everything has a default. */
export interface CapacityOptions {
  /** Longest sequence, prompt and answer together. Default: what the model was made for, as far as memory allows. */
  readonly maxModelLength?: number | undefined;
  /** Sequences in one step. Default 16. */
  readonly maxSequences?: number | undefined;
  /** Tokens in one step: longer prompts are computed in chunks of this. Default 512. */
  readonly maxTokensPerStep?: number | undefined;
  /** Memory for the KV cache over all ranks, in bytes. Default: a quarter of what the process may use, at most 4 GiB. */
  readonly kvCacheBytes?: number | undefined;
  /** Tokens a block of KV cache holds. Default 16. */
  readonly blockSize?: number | undefined;
}

export interface Capacity {
  readonly maxModelLength: number;
  readonly blockSize: number;
  readonly blocks: number;
  readonly limits: StepLimits;
}

/** Sizes that any machine has room for, for ranks that are loaded and run no step, or when the sizes asked for are wrong. */
export const LEAST_CAPACITY: Capacity = {
  maxModelLength: 1,
  blockSize: 1,
  blocks: 1,
  limits: { maxTokens: 1, maxSequences: 1, maxBlocksPerSequence: 1, maxOutputs: 1, maxLogprobs: 0 },
};

/** The most alternatives a request may ask for, as in OpenAI's API. */
export const MAX_LOGPROBS = 20;
const DEFAULT_KV_CACHE_BYTES = 4 * 1024 ** 3;
/** Rows of logits in one step: every sequence's, and chunks of this when a text is scored. */
const MIN_OUTPUTS = 256;

/** Throws OptionError `INVALID_OPTION`, `CONTEXT_TOO_LONG` or `KV_CACHE_TOO_SMALL`. */
export function planCapacity(
  config: ModelConfig,
  options: CapacityOptions,
  worldSize: number,
  kvCacheDtype: KvCacheDType,
): Capacity {
  const blockSize = check("blockSize", options.blockSize ?? 16, 1, 1024);
  const maxSequences = check("maxSequences", options.maxSequences ?? 16, 1, 4096);
  const maxTokens = check(
    "maxTokensPerStep",
    options.maxTokensPerStep ?? Math.max(512, maxSequences),
    maxSequences,
    65_536,
  );
  const kvCacheBytes = options.kvCacheBytes ?? defaultKvCacheBytes();
  check("kvCacheBytes", kvCacheBytes, 1, Number.MAX_SAFE_INTEGER);
  const wanted = check("maxModelLength", options.maxModelLength ?? config.maxPositions, 1, 2 ** 24);
  if (wanted > config.maxPositions) {
    throw new OptionError(
      "CONTEXT_TOO_LONG",
      `expected maxModelLength to be at most the model's ${config.maxPositions} positions but received ${wanted}`,
      { option: "maxModelLength", expected: config.maxPositions, received: wanted },
    );
  }
  const bytesPerBlock = blockSize * kvBytesPerToken(config, worldSize, kvCacheDtype);
  const affordable = Math.floor(kvCacheBytes / bytesPerBlock);
  const blocks = Math.min(affordable, maxSequences * cdiv(wanted, blockSize));
  const needed = options.maxModelLength === undefined ? 1 : cdiv(wanted, blockSize);
  if (blocks < needed) {
    throw new OptionError(
      "KV_CACHE_TOO_SMALL",
      `expected kvCacheBytes to be at least ${needed * bytesPerBlock} for sequences of ${wanted} tokens but received ${kvCacheBytes}`,
      { option: "kvCacheBytes", expected: needed * bytesPerBlock, received: kvCacheBytes },
    );
  }
  const maxModelLength = Math.min(wanted, blocks * blockSize);
  const maxBlocksPerSequence = cdiv(maxModelLength, blockSize);
  const maxOutputs = Math.max(maxSequences, Math.min(MIN_OUTPUTS, maxTokens));
  const limits = { maxTokens, maxSequences, maxBlocksPerSequence, maxOutputs, maxLogprobs: MAX_LOGPROBS };
  return { maxModelLength, blockSize, blocks, limits };
}

/** What an engine takes for the KV cache when nobody says it. */
export function defaultKvCacheBytes(): number {
  return Math.min(DEFAULT_KV_CACHE_BYTES, Math.floor(usableBytes(readMemory()) / 4));
}

/** Bytes of KV cache one token takes over all ranks, replicated KV heads counted as often as they are held. */
function kvBytesPerToken(config: ModelConfig, worldSize: number, dtype: KvCacheDType): number {
  const heads = splitHeads(config.heads, config.kvHeads, worldSize).reduce(
    (sum, { kvHeads }) => sum + kvHeads.end - kvHeads.start,
    0,
  );
  return config.layers * heads * kvPositionBytes(dtype, config.headSize);
}

function check(option: string, value: number, least: number, most: number): number {
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be a whole number from ${least} to ${most} but received ${value}`,
    { option, expected: `${least}..${most}`, received: value },
  );
}
