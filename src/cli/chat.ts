/** `shardloom chat`: a conversation, at a terminal or from a pipe. */
import type { Command } from "commander";
import { ChatSession } from "./chat-session.js";
import type { CommandContext } from "./context.js";
import { launchModel } from "./launch-model.js";
import { addModelOptions, type ModelFlags } from "./model-options.js";
import { addSamplingOptions, type SamplingFlags, samplingOf } from "./sampling-options.js";

interface ChatFlags extends ModelFlags, SamplingFlags {
  readonly system?: string;
}

const EXPLANATION = `
Ctrl-C stops an answer and keeps the chat; at the prompt, Ctrl-D, Ctrl-C twice or /exit leave. /reset forgets the
conversation, /help lists the commands. When stdin is no terminal, each line is a message, and the answers alone go to
stdout.

Example:
  shardloom chat --model model.gguf --tp 2 --temperature 0.7`;

export function addChatCommand(program: Command, context: CommandContext): void {
  const command = program.command("chat").description("talk to the model");
  command.optionsGroup("Conversation:").option("--system <text>", "a system message at the beginning");
  addModelOptions(command);
  addSamplingOptions(command);
  command.addHelpText("after", EXPLANATION).action((flags: ChatFlags) => chat(flags, context));
}

async function chat(flags: ChatFlags, context: CommandContext): Promise<void> {
  const sampling = samplingOf(flags);
  const { engine } = await launchModel(flags, context.interruption.signal);
  try {
    const input = process.stdin;
    const terminal = input.isTTY && context.stdout.isTerminal ? process.stdout : null;
    await new ChatSession({ engine, sampling, system: flags.system, context, input, terminal }).run();
  } finally {
    await engine.close();
  }
}
