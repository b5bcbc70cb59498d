import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { setImmediate as turn } from "node:timers/promises";
import { ChatSession } from "../../src/cli/chat-session.js";
import { Interruption } from "../../src/cli/interruption.js";
import { Output } from "../../src/cli/output.js";
import { RequestError } from "../../src/core/errors.js";
import type { Engine, GenerationDelta, GenerationRequest, RequestOptions } from "../../src/index.js";

const CTRL_C = "\u0003";
const CTRL_D = "\u0004";

/** An engine that answers with the last message in capitals; to "endless" it says "and " until it is stopped. */
class Parrot implements Pick<Engine, "generate"> {
  readonly requests: GenerationRequest[] = [];

  async *generate(request: GenerationRequest, { signal }: RequestOptions = {}): AsyncGenerator<GenerationDelta, void> {
    const messages = [...(request.messages ?? [])];
    this.requests.push({ ...request, messages });
    const said = messages.at(-1)?.content ?? "";
    if (said === "too long") throw new RequestError("PROMPT_TOO_LONG", "expected less but received more");
    if (said === "silence") return yield* this.#untilStopped("", signal);
    if (said === "endless") return yield* this.#untilStopped("and ", signal);
    yield { text: said.toUpperCase(), tokenIds: [1], finishReason: "stop" };
  }

  async *#untilStopped(text: string, signal: AbortSignal | undefined): AsyncGenerator<GenerationDelta, void> {
    while (signal?.aborted !== true) {
      yield { text, tokenIds: [1], finishReason: null };
      await turn();
    }
    yield { text: "", tokenIds: [], finishReason: "abort" };
  }
}

/** A chat at a terminal made of two streams. */
class Terminal {
  readonly parrot = new Parrot();
  readonly notes: string[] = [];
  readonly ended: Promise<void>;
  readonly #input = new PassThrough();
  #shown = "";

  constructor() {
    const output = new PassThrough();
    output.setEncoding("utf8").on("data", (text: string) => {
      this.#shown += text;
    });
    const interruption = new Interruption();
    const stdout = new Output(output, () => {});
    this.ended = new ChatSession({
      engine: this.parrot,
      sampling: {},
      system: undefined,
      context: { stdout, interruption, note: (line) => this.notes.push(line), exitWith: () => {} },
      input: this.#input,
      terminal: output,
    }).run();
  }

  type(keys: string): void {
    this.#input.write(keys);
  }

  /** Resolves when `text` has been shown since the last call. */
  async shows(text: string): Promise<void> {
    for (;;) {
      const at = this.#shown.indexOf(text);
      if (at >= 0) {
        this.#shown = this.#shown.slice(at + text.length);
        return;
      }
      await turn();
    }
  }

  /** Roles and texts of the latest request. */
  get conversation(): string[] {
    return (this.parrot.requests.at(-1)?.messages ?? []).map(({ role, content }) => `${role}: ${content}`);
  }
}

describe("shardloom chat at a terminal", () => {
  it("answers at the prompt, remembers, and leaves with Ctrl-D", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("hello\r");
    await terminal.shows("HELLO");
    await terminal.shows("> ");
    terminal.type("again\r");
    await terminal.shows("AGAIN");
    assert.deepEqual(terminal.conversation, ["user: hello", "assistant: HELLO", "user: again"]);
    await terminal.shows("> ");
    terminal.type(CTRL_D);
    await terminal.ended;
  });

  it("Ctrl-C stops an answer, which stays in the conversation as far as it came", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("endless\r");
    await terminal.shows("and and ");
    terminal.type(CTRL_C);
    await terminal.shows("> ");
    terminal.type("so\r");
    await terminal.shows("SO");
    assert.equal(terminal.conversation.length, 3);
    assert.match(terminal.conversation[1] ?? "", /^assistant: (and )+$/);
    terminal.type("/exit\r");
    await terminal.ended;
  });

  it("forgets a message that was stopped before it had any answer", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("silence\r");
    while (terminal.parrot.requests.length === 0) await turn();
    terminal.type(CTRL_C);
    await terminal.shows("> ");
    terminal.type("so\r");
    await terminal.shows("SO");
    assert.deepEqual(terminal.conversation, ["user: so"]);
    terminal.type("/exit\r");
    await terminal.ended;
  });

  it("Ctrl-C at the prompt throws away what was typed; a second one leaves", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("half a mess");
    await terminal.shows("half a mess");
    terminal.type(CTRL_C);
    await terminal.shows("Ctrl-C again");
    await terminal.shows("> ");
    terminal.type("whole\r");
    await terminal.shows("WHOLE");
    assert.deepEqual(terminal.conversation, ["user: whole"]);
    // A message in between: Ctrl-C has to be pressed twice again.
    await terminal.shows("> ");
    terminal.type(CTRL_C);
    await terminal.shows("Ctrl-C again");
    terminal.type(CTRL_C);
    await terminal.ended;
  });

  it("a conversation that has become too long is reported and the chat goes on without that message", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("too long\r");
    await terminal.shows("> ");
    assert.match(terminal.notes[0] ?? "", /^shardloom: error\[PROMPT_TOO_LONG\]: expected less but received more$/);
    assert.match(terminal.notes[1] ?? "", /\/reset/);
    terminal.type("so\r");
    await terminal.shows("SO");
    assert.deepEqual(terminal.conversation, ["user: so"]);
    terminal.type("/exit\r");
    await terminal.ended;
  });

  it("/help and unknown commands list the commands and are no messages", async () => {
    const terminal = new Terminal();
    await terminal.shows("> ");
    terminal.type("/help\r");
    await terminal.shows("/reset");
    terminal.type("/hepl\r");
    await terminal.shows("There is no command /hepl");
    await terminal.shows("/reset");
    assert.equal(terminal.parrot.requests.length, 0);
    terminal.type("/exit\r");
    await terminal.ended;
  });
});
