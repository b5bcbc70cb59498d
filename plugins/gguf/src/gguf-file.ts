import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { CheckpointError, InternalError } from "shardloom/plugin";

/** An open .gguf file: positional reads only, nothing is kept in memory. */
export class GgufFile {
  readonly path: string;
  readonly sizeBytes: number;
  #descriptor: number | null;

  private constructor(path: string, descriptor: number, sizeBytes: number) {
    this.path = path;
    this.sizeBytes = sizeBytes;
    this.#descriptor = descriptor;
  }

  /** Opens a regular file. Throws CheckpointError `FILE_NOT_FOUND`. */
  static open(path: string): GgufFile {
    try {
      // Opening a pipe would block, so what it is has to be known before it is opened.
      if (!statSync(path).isFile()) throw new Error("it is not a regular file");
      const descriptor = openSync(path, "r");
      return new GgufFile(path, descriptor, fstatSync(descriptor).size);
    } catch (error) {
      throw new CheckpointError(
        "FILE_NOT_FOUND",
        `cannot read ${path}: ${error instanceof Error ? error.message : String(error)}`,
        { file: path },
        { cause: error },
      );
    }
  }

  /**
   * Fills `destination` with the bytes at `position`. `what` names them in messages. Throws CheckpointError `SHORT_READ`
   * when the file ends before they do or the system cannot read them.
   */
  read(destination: Uint8Array, position: number, what: string): void {
    if (this.#descriptor === null) throw new InternalError(`${this.path} was read after it was closed`);
    let done = 0;
    while (done < destination.length) {
      const count = this.#readSome(this.#descriptor, destination, done, position, what);
      if (count === 0) throw this.#shortRead(what, position, destination.length, `${done} bytes`);
      done += count;
    }
  }

  close(): void {
    if (this.#descriptor !== null) closeSync(this.#descriptor);
    this.#descriptor = null;
  }

  #readSome(descriptor: number, destination: Uint8Array, done: number, position: number, what: string): number {
    try {
      return readSync(descriptor, destination, done, destination.length - done, position + done);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      throw this.#shortRead(what, position, destination.length, message, error);
    }
  }

  #shortRead(what: string, position: number, expected: number, received: string, cause?: unknown): CheckpointError {
    return new CheckpointError(
      "SHORT_READ",
      `${this.path}: expected ${expected} bytes of ${what} at byte ${position} but received ${received}`,
      { file: this.path, tensor: what, expected, received },
      { cause },
    );
  }
}
