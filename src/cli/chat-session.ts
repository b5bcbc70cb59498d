/** The conversation of `shardloom chat`: reads messages, streams answers, and gives Ctrl-C its meanings. */
import { createInterface, type Interface } from "node:readline/promises";
import { RequestError } from "../core/errors.js";
import type { ChatMessage, Engine, FinishReason, SamplingOptions } from "../index.js";
import type { CommandContext } from "./context.js";
import { errorLine } from "./report-error.js";

export interface ChatSessionOptions {
  readonly engine: Pick<Engine, "generate">;
  readonly sampling: SamplingOptions;
  readonly system: string | undefined;
  readonly context: CommandContext;
  /** Where messages come from: a line each. */
  readonly input: NodeJS.ReadableStream;
  /** The terminal a person types at, which shows prompts; null when messages come from a pipe or a file. */
  readonly terminal: NodeJS.WritableStream | null;
}

const HELP = `/reset  forget the conversation
/exit   leave (or Ctrl-D)
/help   this list
Ctrl-C stops an answer.
`;

export class ChatSession {
  readonly #engine: Pick<Engine, "generate">;
  readonly #sampling: SamplingOptions;
  readonly #system: readonly ChatMessage[];
  readonly #context: CommandContext;
  /** Prompts and remarks are for a person; a pipe gets answers only. */
  readonly #terminal: NodeJS.WritableStream | null;
  readonly #lines: Interface;
  #messages: ChatMessage[];
  /** The answer that is being given; null between answers. */
  #answering: AbortController | null = null;
  /** Whether Ctrl-C was pressed at the prompt, so that a second time means to leave. */
  #leaving = false;

  constructor({ engine, sampling, system, context, input, terminal }: ChatSessionOptions) {
    this.#engine = engine;
    this.#sampling = sampling;
    this.#system = system === undefined ? [] : [{ role: "system", content: system }];
    this.#messages = [...this.#system];
    this.#context = context;
    this.#terminal = terminal;
    this.#lines = createInterface({
      input,
      ...(terminal === null ? {} : { output: terminal }),
      terminal: terminal !== null,
      prompt: "> ",
    });
  }

  /** Resolves when the user leaves, stdin ends, or the command is interrupted. Throws what the engine throws. */
  async run(): Promise<void> {
    const { interruption } = this.#context;
    const close = (): void => this.#lines.close();
    interruption.setSigintTaker(() => this.#takeSigint());
    interruption.signal.addEventListener("abort", close, { once: true });
    // In raw mode a terminal sends Ctrl-C as a character.
    this.#lines.on("SIGINT", () => interruption.receive("SIGINT"));
    try {
      await this.#remark("/help lists commands. Ctrl-C stops an answer, Ctrl-D leaves.\n");
      await this.#converse();
    } finally {
      interruption.setSigintTaker(null);
      interruption.signal.removeEventListener("abort", close);
      this.#lines.close();
    }
  }

  async #converse(): Promise<void> {
    // One iterator for the whole time: lines that arrive during an answer wait in it.
    const lines = this.#lines[Symbol.asyncIterator]();
    for (;;) {
      if (this.#terminal !== null && !this.#context.interruption.signal.aborted) this.#lines.prompt();
      const { value, done } = await lines.next();
      if (done === true || this.#context.interruption.signal.aborted) break;
      this.#leaving = false;
      const line = value.trim();
      if (line === "/exit") return;
      if (line.startsWith("/")) await this.#command(line);
      else if (line !== "") await this.#answer(line);
    }
    await this.#remark("\n");
  }

  async #command(line: string): Promise<void> {
    if (line === "/reset") {
      this.#messages = [...this.#system];
      await this.#remark("The conversation starts anew.\n");
    } else await this.#remark(line === "/help" ? HELP : `There is no command ${line}.\n${HELP}`);
  }

  /** Answers a message. What cannot be answered leaves the conversation as it was. */
  async #answer(content: string): Promise<void> {
    const before = this.#messages;
    this.#messages = [...before, { role: "user", content }];
    this.#answering = new AbortController();
    try {
      const { text, finishReason } = await this.#stream(this.#answering.signal);
      if (text === "" && finishReason === "abort") this.#messages = before;
      else this.#messages.push({ role: "assistant", content: text });
      if (finishReason === "length") await this.#remark("(The answer ends here: it has its maximum of tokens.)\n");
    } catch (error) {
      if (this.#terminal === null || !(error instanceof RequestError)) throw error;
      this.#messages = before;
      this.#context.note(errorLine(error).trimEnd());
      this.#context.note("(/reset starts the conversation anew.)");
    } finally {
      this.#answering = null;
    }
  }

  async #stream(stop: AbortSignal): Promise<{ readonly text: string; readonly finishReason: FinishReason | null }> {
    const { stdout, interruption } = this.#context;
    const signal = AbortSignal.any([stop, interruption.signal]);
    let text = "";
    let finishReason: FinishReason | null = null;
    const request = { messages: this.#messages, sampling: this.#sampling };
    for await (const delta of this.#engine.generate(request, { signal })) {
      text += delta.text;
      finishReason = delta.finishReason;
      await stdout.write(delta.text);
    }
    await stdout.endLine();
    return { text, finishReason };
  }

  /** What Ctrl-C means here; false where it is to end the command as it does elsewhere. */
  #takeSigint(): boolean {
    if (this.#answering !== null) {
      this.#answering.abort();
      return true;
    }
    if (this.#terminal === null) return false;
    if (this.#lines.line === "" && this.#leaving) {
      this.#lines.close();
      return true;
    }
    this.#leaving = true;
    // End of line, then delete to its beginning: what was typed is gone.
    this.#lines.write(null, { ctrl: true, name: "e" });
    this.#lines.write(null, { ctrl: true, name: "u" });
    this.#terminal.write("\n(Ctrl-C again or Ctrl-D leaves.)\n");
    this.#lines.prompt();
    return true;
  }

  async #remark(text: string): Promise<void> {
    if (this.#terminal !== null) await this.#context.stdout.write(text);
  }
}
