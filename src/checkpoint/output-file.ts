/** A file written at given positions, synchronously: what RandomAccessFile is for reading. */
import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import { invariant, reasonOf, ShardloomError } from "../core/errors.js";

export class OutputFile {
  readonly path: string;
  /** null once closed: the number may by then belong to another file. */
  #fd: number | null;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /** Creates a file; there must be none. Throws ShardloomError `WRITE_FAILED`. */
  static create(path: string): OutputFile {
    return new OutputFile(path, open(path, "wx"));
  }

  /** Opens a file that exists, and leaves what is in it. Throws ShardloomError `WRITE_FAILED`. */
  static open(path: string): OutputFile {
    return new OutputFile(path, open(path, "r+"));
  }

  /** Writes all bytes from `position` on; what lies between them and the end of the file reads as zeros. Throws `WRITE_FAILED`. */
  write(bytes: Uint8Array, position: number): void {
    const fd = this.#descriptor();
    try {
      for (let done = 0; done < bytes.length; ) {
        done += writeSync(fd, bytes, done, bytes.length - done, position + done);
      }
    } catch (error) {
      throw writeFailed(this.path, error);
    }
  }

  /** Returns when the system has put everything on disk. Throws `WRITE_FAILED`. */
  sync(): void {
    try {
      fsyncSync(this.#descriptor());
    } catch (error) {
      throw writeFailed(this.path, error);
    }
  }

  /** Releases the file; a second call does nothing. */
  close(): void {
    const fd = this.#fd;
    this.#fd = null;
    if (fd !== null) closeSync(fd);
  }

  #descriptor(): number {
    invariant(this.#fd !== null, `${this.path} is written after it was closed`);
    return this.#fd;
  }
}

function open(path: string, flags: string): number {
  try {
    return openSync(path, flags);
  } catch (error) {
    throw writeFailed(path, error);
  }
}

/** A file or directory that cannot be written, in the words of the system. */
export function writeFailed(path: string, cause: unknown): ShardloomError {
  const reason = reasonOf(cause);
  return new ShardloomError("WRITE_FAILED", `cannot write ${path}: ${reason}`, { file: path, reason }, { cause });
}
