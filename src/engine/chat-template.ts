/** From a conversation to the text a chat model was trained on, by the model's own template (Jinja). */
import { Template } from "@huggingface/jinja";
import { CheckpointError, describeValue, OptionError, RequestError, reasonOf } from "../core/errors.js";

/** One turn of a conversation. */
export interface ChatMessage {
  /** "system", "user", "assistant", "tool", or what else the model's template knows. */
  readonly role: string;
  readonly content: string;
}

/** More turns than any context holds. */
const MAX_MESSAGES = 65_536;

export class ChatTemplate {
  readonly #source: string;
  readonly #specialTokens: Readonly<Record<string, string>>;
  /** Parsed when it is first used: a model whose template is broken can still continue a text. */
  #template: Template | null = null;

  /** `source` is the Jinja template, `specialTokens` what it may call `bos_token`, `eos_token`, ... */
  constructor(source: string, specialTokens: ReadonlyMap<string, string>) {
    this.#source = source;
    this.#specialTokens = Object.fromEntries(specialTokens);
  }

  /**
   * The text that asks for the assistant's next turn. Special tokens are part of it, so it is tokenized without adding
   * any. The template sees what transformers' `apply_chat_template` gives it: `messages`, `add_generation_prompt`,
   * `tools` and `documents` (none), the special tokens, `raise_exception` and `strftime_now`.
   *
   * Throws OptionError `INVALID_MESSAGES`, CheckpointError `INVALID_CHAT_TEMPLATE` when the source does not parse, or
   * RequestError `CHAT_TEMPLATE_FAILED` when the template refuses the conversation.
   */
  render(messages: readonly ChatMessage[]): string {
    const checked = checkMessages(messages);
    this.#template ??= parse(this.#source);
    try {
      return this.#template.render({
        ...this.#specialTokens,
        messages: checked,
        tools: null,
        documents: null,
        add_generation_prompt: true,
      });
    } catch (error) {
      throw new RequestError(
        "CHAT_TEMPLATE_FAILED",
        `expected a conversation that the model's chat template accepts but it said: ${reasonOf(error)}`,
        { received: reasonOf(error) },
        { cause: error },
      );
    }
  }
}

function parse(source: string): Template {
  try {
    return new Template(source);
  } catch (error) {
    throw new CheckpointError(
      "INVALID_CHAT_TEMPLATE",
      `expected the model's chat template to be Jinja but received: ${reasonOf(error)}`,
      { expected: "Jinja", received: reasonOf(error) },
      { cause: error },
    );
  }
}

function checkMessages(messages: unknown): ChatMessage[] {
  if (!Array.isArray(messages) || messages.length === 0 || messages.length > MAX_MESSAGES) {
    throw invalid("messages", `an array of 1 to ${MAX_MESSAGES} messages`, messages);
  }
  return messages.map((message: unknown, i) => {
    if (typeof message !== "object" || message === null) throw invalid(`messages[${i}]`, "an object", message);
    const role = "role" in message ? message.role : undefined;
    const content = "content" in message ? message.content : undefined;
    if (typeof role !== "string" || role === "") throw invalid(`messages[${i}].role`, "a text", role);
    if (typeof content !== "string") throw invalid(`messages[${i}].content`, "a text", content);
    // Further fields (name, tool_call_id, ...) are the template's business.
    return { ...message, role, content };
  });
}

function invalid(option: string, expected: string, value: unknown): OptionError {
  const received = describeValue(value);
  return new OptionError("INVALID_MESSAGES", `expected ${option} to be ${expected} but received ${received}`, {
    option,
    expected,
    received,
  });
}
