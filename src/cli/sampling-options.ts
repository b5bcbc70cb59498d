/** The flags that say how tokens are chosen and where an answer ends. */
import type { Command } from "commander";
import { MAX_LOGPROBS } from "../engine/capacity.js";
import { MAX_TEMPERATURE, resolveSampling, type SamplingOptions } from "../engine/sampling.js";
import { realNumber, tokenIds, wholeNumber } from "./option-values.js";

const MAX_TOKENS = 2 ** 31 - 1;
const MAX_SEED = 2 ** 32 - 1;

/** Values of the flags, under the names that commander gives them. */
export interface SamplingFlags {
  readonly maxTokens?: number;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
  readonly logprobs?: number;
}

export function addSamplingOptions(command: Command): void {
  const temperature = realNumber(
    "--temperature",
    `from 0 to ${MAX_TEMPERATURE}`,
    (value) => value >= 0 && value <= MAX_TEMPERATURE,
  );
  const topP = realNumber("--top-p", "above 0 and at most 1", (value) => value > 0 && value <= 1);
  const minP = realNumber("--min-p", "from 0 to 1", (value) => value >= 0 && value <= 1);
  command
    .optionsGroup("Answer:")
    .option(
      "--max-tokens <n>",
      "most tokens to generate (default: what the context has room for)",
      wholeNumber("--max-tokens", 1, MAX_TOKENS),
    )
    .option("--temperature <t>", "0, the default, takes the likeliest token; above 0 tokens are drawn", temperature)
    .option(
      "--top-k <k>",
      "draw from the k likeliest tokens; 0 for all (default: 0)",
      wholeNumber("--top-k", 0, MAX_TOKENS),
    )
    .option("--top-p <p>", "draw from the likeliest tokens whose probabilities reach p (default: 1)", topP)
    .option("--min-p <p>", "draw from tokens at least p times as likely as the likeliest (default: 0)", minP)
    .option("--seed <s>", "draws the same tokens again (default: a random seed)", wholeNumber("--seed", 0, MAX_SEED))
    .option("--stop <text...>", "texts that end the answer and are not part of it")
    .option("--stop-token-ids <ids>", "token ids that end the answer, as 1,2,3", tokenIds("--stop-token-ids"))
    .option("--ignore-eos", "go on after an end-of-sequence token");
}

/** Throws OptionError `INVALID_SAMPLING_OPTION` for what the flags' own checks let pass. */
export function samplingOf(flags: SamplingFlags): SamplingOptions {
  const sampling: SamplingOptions = {
    maxTokens: flags.maxTokens,
    temperature: flags.temperature,
    topK: flags.topK,
    topP: flags.topP,
    minP: flags.minP,
    seed: flags.seed,
    stop: flags.stop,
    stopTokenIds: flags.stopTokenIds,
    ignoreEndOfSequence: flags.ignoreEos,
    logprobs: flags.logprobs,
  };
  checkBeforeLoading(sampling);
  return sampling;
}

/** The engine checks the same for the model it serves; here what is wrong for every model is found before it is loaded. */
function checkBeforeLoading(sampling: SamplingOptions): void {
  resolveSampling(sampling, {
    vocabularySize: MAX_TOKENS,
    maxLogprobs: MAX_LOGPROBS,
    room: MAX_TOKENS,
    endOfSequenceIds: [],
    hasTokenizer: true,
    drawSeed: () => 0,
  });
}
