/** `shardloom score`: how likely a model finds a text. */
import { addAbortSignal } from "node:stream";
import { text } from "node:stream/consumers";
import type { Command } from "commander";
import { describeValue, OptionError, reasonOf, ShardloomError } from "../core/errors.js";
import { isJsonObject, readTextFile } from "../core/json.js";
import type { CommandContext } from "./context.js";
import { launchModel } from "./launch-model.js";
import { addModelOptions, type ModelFlags } from "./model-options.js";
import { parseTokenIds } from "./option-values.js";

interface ScoreFlags extends ModelFlags {
  readonly tokenIds: string;
  readonly json?: boolean;
}

const EXPLANATION = `
FILE holds a JSON array of token ids, a JSON object with such an array under "ids", or ids between commas or white space;
- reads stdin. Every token but the first is scored, given all tokens before it, in one window. With --json the result is
{"tokens":n,"nll_mean":x}: the number of tokens scored, one less than there are ids, and the mean of their negative
log-likelihoods (natural logarithm). Perplexity is the exponential of that mean.

Example:
  shardloom score --model ./llama --tp 2 --token-ids ids.json --json`;

export function addScoreCommand(program: Command, context: CommandContext): void {
  const command = program.command("score").description("measure how likely the model finds a text");
  command
    .optionsGroup("Text:")
    .requiredOption("--token-ids <file>", "file with the token ids of the text, or - for stdin");
  addModelOptions(command);
  command
    .optionsGroup("Output:")
    .option("--json", "print one JSON object")
    .addHelpText("after", EXPLANATION)
    .action((flags: ScoreFlags) => score(flags, context));
}

async function score(flags: ScoreFlags, { stdout, interruption: { signal } }: CommandContext): Promise<void> {
  const ids = await readTokenIds(flags.tokenIds, signal);
  const { engine } = await launchModel(flags, signal);
  try {
    const { nll, nllMean } = await engine.score(ids, { signal });
    if (flags.json === true) await stdout.writeJson({ tokens: nll.length, nll_mean: nllMean });
    else {
      const perplexity = Math.exp(nllMean).toPrecision(6);
      await stdout.write(`${nll.length} tokens, mean NLL ${nllMean.toFixed(6)}, perplexity ${perplexity}\n`);
    }
  } finally {
    await engine.close();
  }
}

/** Throws OptionError `INVALID_TOKEN_IDS_FILE` or `INVALID_TOKEN_ID`. Whether the model has the ids is checked later. */
async function readTokenIds(file: string, signal: AbortSignal): Promise<readonly number[]> {
  const content = file === "-" ? await text(addAbortSignal(signal, process.stdin)) : readFile(file);
  if (!/^\s*[[{]/.test(content)) return parseTokenIds(content, file);
  const value = parseJson(content, file);
  const ids: unknown = isJsonObject(value) ? value["ids"] : value;
  if (!Array.isArray(ids)) throw invalid(file, `an array of token ids, or one under "ids"`, describeValue(ids));
  return ids.map((id: unknown, i) => {
    if (typeof id === "number" && Number.isSafeInteger(id) && id >= 0) return id;
    throw invalid(file, `a token id at [${i}]`, describeValue(id));
  });
}

function readFile(file: string): string {
  try {
    return readTextFile(file);
  } catch (error) {
    // A file the user names on the command line, not one of a model.
    if (!(error instanceof ShardloomError)) throw error;
    throw new OptionError("INVALID_TOKEN_IDS_FILE", error.message, { option: "--token-ids", file }, { cause: error });
  }
}

function parseJson(content: string, file: string): unknown {
  try {
    return JSON.parse(content);
  } catch (error) {
    throw invalid(file, "JSON, as it begins like it,", reasonOf(error));
  }
}

function invalid(file: string, expected: string, received: string): OptionError {
  return new OptionError("INVALID_TOKEN_IDS_FILE", `${file}: expected ${expected} but received ${received}`, {
    option: "--token-ids",
    file,
    expected,
    received,
  });
}
