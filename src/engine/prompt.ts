/** From a request to the token ids of its prompt. */
import { describeValue, OptionError, RequestError, UnsupportedError } from "../core/errors.js";
import type { ChatTemplate } from "./chat-template.js";
import type { GenerationRequest } from "./generation.js";
import type { Tokenizer } from "./tokenizer.js";

/** What prompts are made with. */
export interface PromptTools {
  /** Null where the model has none: prompts are token ids then. */
  readonly tokenizer: Tokenizer | null;
  readonly chatTemplate: ChatTemplate | null;
  readonly vocabularySize: number;
}

const sources = ["prompt", "promptTokenIds", "messages"] as const;

/**
 * Token ids of a request's prompt; at least one. Throws OptionError `INVALID_PROMPT`, `EMPTY_PROMPT`,
 * `INVALID_TOKEN_ID` or `INVALID_MESSAGES`, UnsupportedError `NO_TOKENIZER` or `NO_CHAT_TEMPLATE`, and what tokenizer
 * and template throw.
 */
export function promptTokenIdsOf(request: GenerationRequest, tools: PromptTools): readonly number[] {
  checkRequest(request);
  if (request.promptTokenIds !== undefined) return checkTokenIds(request.promptTokenIds, tools.vocabularySize);
  const { tokenizer } = tools;
  if (tokenizer === null) {
    throw new UnsupportedError(
      "NO_TOKENIZER",
      "expected promptTokenIds, as this model has no tokenizer, but received text",
      { option: "promptTokenIds" },
    );
  }
  const ids =
    request.messages === undefined
      ? tokenizer.encode(checkText(request.prompt), { addSpecialTokens: true })
      : tokenizer.encode(templateOf(tools).render(request.messages), { addSpecialTokens: false });
  if (ids.length === 0) throw emptyPrompt();
  return ids;
}

/** Checks token ids given by a user. Throws OptionError `EMPTY_PROMPT` or `INVALID_TOKEN_ID`. */
export function checkTokenIds(ids: unknown, vocabularySize: number, option = "promptTokenIds"): readonly number[] {
  if (!Array.isArray(ids)) throw invalidId(option, "an array of token ids", ids);
  if (ids.length === 0) throw emptyPrompt(option);
  // Not map: it would pass over the holes of a sparse array.
  return Array.from(ids, (id: unknown, i) => {
    if (typeof id === "number" && Number.isInteger(id) && id >= 0 && id < vocabularySize) return id;
    throw invalidId(`${option}[${i}]`, `a token id from 0 to ${vocabularySize - 1}`, id);
  });
}

/** Throws RequestError `PROMPT_TOO_LONG` unless a prompt of `length` tokens fits, which `most` do. */
export function checkLength(length: number, most: number, contextLength: number): void {
  if (length <= most) return;
  throw new RequestError(
    "PROMPT_TOO_LONG",
    `expected at most ${most} tokens, as the context holds ${contextLength}, but received ${length}`,
    { expected: most, received: length },
  );
}

function checkRequest(request: GenerationRequest): void {
  if (typeof request !== "object" || request === null) {
    throw invalidPrompt("a request object", describeValue(request));
  }
  const given = sources.filter((source) => request[source] !== undefined);
  if (given.length === 1) return;
  throw invalidPrompt(
    `exactly one of ${sources.join(", ")}`,
    given.length === 0 ? "none of them" : given.join(" and "),
  );
}

function checkText(prompt: unknown): string {
  if (typeof prompt === "string") return prompt;
  throw invalidPrompt("prompt to be a text", describeValue(prompt));
}

function templateOf({ chatTemplate }: PromptTools): ChatTemplate {
  if (chatTemplate !== null) return chatTemplate;
  throw new UnsupportedError(
    "NO_CHAT_TEMPLATE",
    "expected a prompt, as this model has no chat template, but received messages",
    { option: "messages" },
  );
}

function emptyPrompt(option = "prompt"): OptionError {
  return new OptionError("EMPTY_PROMPT", `expected ${option} to hold at least one token but received none`, {
    option,
    expected: 1,
    received: 0,
  });
}

function invalidPrompt(expected: string, received: string): OptionError {
  return new OptionError("INVALID_PROMPT", `expected ${expected} but received ${received}`, {
    option: "prompt",
    expected,
    received,
  });
}

function invalidId(option: string, expected: string, value: unknown): OptionError {
  const received = describeValue(value);
  return new OptionError("INVALID_TOKEN_ID", `expected ${option} to be ${expected} but received ${received}`, {
    option,
    expected,
    received,
  });
}
