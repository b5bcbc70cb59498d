/** The text of one answer as its tokens come: detokenized, and cut at a stop text. */
import type { Detokenizer } from "./detokenizer.js";
import type { StopStringMatcher } from "./stop-strings.js";

export class AnswerText {
  /** Null where the model has no tokenizer: the answer has no text then. */
  readonly #detokenizer: Detokenizer | null;
  readonly #matcher: StopStringMatcher;

  constructor(detokenizer: Detokenizer | null, matcher: StopStringMatcher) {
    this.#detokenizer = detokenizer;
    this.#matcher = matcher;
  }

  /** Whether a stop text has come. */
  get stopped(): boolean {
    return this.#matcher.stopped;
  }

  /** Takes the next token, returns the text that became certain. */
  push(tokenId: number): string {
    return this.#detokenizer === null ? "" : this.#matcher.push(this.#detokenizer.push(tokenId));
  }

  /** The rest of the text, once no more tokens come. */
  end(): string {
    const rest = this.#detokenizer === null ? "" : this.#matcher.push(this.#detokenizer.flush());
    return rest + this.#matcher.flush();
  }
}
