/** Results on their way to stdout. */
import { ShardloomError } from "../core/errors.js";
import { printable } from "./terminal-text.js";

/** What is needed of a stream such as `process.stdout`. */
export interface OutputStream {
  readonly isTTY?: boolean;
  write(text: string, done: (error?: Error | null) => void): boolean;
  on(event: "error", listener: (error: Error) => void): unknown;
}

export class Output {
  readonly isTerminal: boolean;
  readonly #stream: OutputStream;
  readonly #onClosed: () => void;
  #closed = false;
  #lineOpen = false;

  /** `onClosed` is called once when the reader at the other end has gone, as `head` does. */
  constructor(stream: OutputStream, onClosed: () => void) {
    this.#stream = stream;
    this.#onClosed = onClosed;
    this.isTerminal = stream.isTTY === true;
    // Errors also come through the callback of `write`; without a listener they would end the process.
    stream.on("error", () => {});
  }

  /**
   * Writes text and resolves when the stream has taken it. On a terminal, control characters that a model may produce
   * show as escapes. Once the reader has gone, nothing is written any more. Throws ShardloomError `OUTPUT_FAILED`.
   */
  write(text: string): Promise<void> {
    return this.#write(this.isTerminal ? printable(text) : text);
  }

  /** Writes text whose control characters are our own, colours for instance: nothing in it may come from others as it is. */
  writeStyled(text: string): Promise<void> {
    return this.#write(text);
  }

  async #write(text: string): Promise<void> {
    if (this.#closed || text === "") return;
    this.#lineOpen = !text.endsWith("\n");
    const error = await new Promise<Error | null>((resolve) => {
      this.#stream.write(text, (failure) => resolve(failure ?? null));
    });
    if (error === null) return;
    this.#closed = true;
    if ("code" in error && error.code === "EPIPE") return this.#onClosed();
    throw new ShardloomError("OUTPUT_FAILED", `cannot write to stdout: ${error.message}`, {}, { cause: error });
  }

  /** Ends the line that the last text left open, if it did. */
  async endLine(): Promise<void> {
    if (this.#lineOpen) await this.write("\n");
  }

  writeJson(value: unknown): Promise<void> {
    return this.write(`${JSON.stringify(value)}\n`);
  }
}
