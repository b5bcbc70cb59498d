/** `shardloom generate`: one prompt, one answer. */
import type { Command } from "commander";
import { OptionError } from "../core/errors.js";
import { MAX_LOGPROBS } from "../engine/capacity.js";
import type { Engine, GenerationRequest } from "../index.js";
import { Answer, reportOf, summaryOf } from "./answer.js";
import type { CommandContext } from "./context.js";
import { launchModel } from "./launch-model.js";
import { addModelOptions, type ModelFlags } from "./model-options.js";
import { tokenIds, wholeNumber } from "./option-values.js";
import { addSamplingOptions, type SamplingFlags, samplingOf } from "./sampling-options.js";

interface GenerateFlags extends ModelFlags, SamplingFlags {
  readonly prompt?: string;
  readonly promptIds?: readonly number[];
  readonly chat?: string;
  readonly system?: string;
  readonly json?: boolean;
}

const EXAMPLES = `
One of --prompt, --prompt-ids and --chat is needed. The answer goes to stdout as it comes; when it has ended, what each
rank has read and how fast the answer came (time to first token, time per output token, tokens per second of decoding)
go to stderr. A model without a tokenizer answers with token ids.

Examples:
  shardloom generate --model model.gguf --tp 2 --chat "Why is the sky blue?"
  shardloom generate --model ./llama --prompt "Once upon a time" --max-tokens 50 --temperature 0.8 --seed 1
  shardloom generate --model ./llama --prompt-ids 1,2,3 --max-tokens 5 --logprobs 3 --json`;

export function addGenerateCommand(program: Command, context: CommandContext): void {
  const command = program.command("generate").description("answer one prompt");
  command
    .optionsGroup("Prompt:")
    .option("-p, --prompt <text>", "a text to continue")
    .option("--prompt-ids <ids>", "the same as token ids, taken as they are: 1,2,3", tokenIds("--prompt-ids"))
    .option("--chat <text>", "a message to answer, put into the model's chat template")
    .option("--system <text>", "a system message before --chat");
  addModelOptions(command);
  addSamplingOptions(command);
  command
    .optionsGroup("Output:")
    .option(
      "--logprobs <k>",
      "with --json: of each token, the log-probabilities of the k likeliest there",
      wholeNumber("--logprobs", 0, MAX_LOGPROBS),
    )
    .option("--json", "print one JSON object when the answer has ended, instead of text as it comes")
    .addHelpText("after", EXAMPLES)
    .action((flags: GenerateFlags) => generate(flags, context));
}

async function generate(flags: GenerateFlags, context: CommandContext): Promise<void> {
  const request: GenerationRequest = { ...promptOf(flags), sampling: samplingOf(flags) };
  if (flags.logprobs !== undefined && flags.json !== true) {
    throw new OptionError("INVALID_OPTION", "expected --json beside --logprobs but received none", {
      option: "--logprobs",
      expected: "--json",
    });
  }
  const { engine, loadMs } = await launchModel(flags, context.interruption.signal);
  try {
    const answer = await answerTo(request, engine, context, flags.json === true);
    if (context.interruption.signal.aborted) return;
    if (flags.json === true) {
      const { model, logprobs } = flags;
      await context.stdout.writeJson(reportOf(answer, engine, { model, loadMs, withLogprobs: logprobs !== undefined }));
    } else for (const line of summaryOf(answer, engine)) context.note(line);
  } finally {
    await engine.close();
  }
}

/** The answer, which has been written to stdout as it came unless it is to be `silent`. */
async function answerTo(
  request: GenerationRequest,
  engine: Engine,
  { stdout, interruption: { signal } }: CommandContext,
  silent: boolean,
): Promise<Answer> {
  const answer = new Answer();
  for await (const delta of engine.generate(request, { signal })) {
    const separator = answer.tokenIds.length > 0 ? " " : "";
    answer.add(delta);
    if (silent) continue;
    if (engine.tokenizer !== null) await stdout.write(delta.text);
    else if (delta.tokenIds.length > 0) await stdout.write(separator + delta.tokenIds.join(" "));
  }
  await stdout.endLine();
  return answer;
}

/** Throws OptionError `INVALID_PROMPT`. */
function promptOf({ prompt, promptIds, chat, system }: GenerateFlags): GenerationRequest {
  const given = [
    ...(prompt === undefined ? [] : ["--prompt"]),
    ...(promptIds === undefined ? [] : ["--prompt-ids"]),
    ...(chat === undefined ? [] : ["--chat"]),
  ];
  if (given.length !== 1) throw invalidPrompt("exactly one of --prompt, --prompt-ids and --chat", given);
  if (chat === undefined) {
    if (system !== undefined) throw invalidPrompt("--chat beside --system", given);
    return { prompt, promptTokenIds: promptIds };
  }
  const question = { role: "user", content: chat };
  return { messages: system === undefined ? [question] : [{ role: "system", content: system }, question] };
}

function invalidPrompt(expected: string, given: readonly string[]): OptionError {
  const received = given.length === 0 ? "none of them" : given.join(" and ");
  return new OptionError("INVALID_PROMPT", `expected ${expected} but received ${received}`, { expected, received });
}
