import { CheckpointError, type ErrorDetails, type PackedStrings, type RandomAccessFile } from "shardloom/plugin";
import { StringRun } from "./string-run.js";

/** Bytes kept in memory at a time while a header is read. */
const WINDOW_BYTES = 256 * 1024;

/** No string of a header is longer: the longest real ones are chat templates of some tens of kilobytes. */
export const MAX_STRING_BYTES = 16 * 1024 * 1024;

/** No header is longer: the largest vocabularies take about 20 MB. */
export const MAX_HEADER_BYTES = 256 * 1024 * 1024;

/**
 * Reads a header front to back through a small window. Every length is compared with what is left of the file before
 * anything is allocated or read for it.
 */
export class HeaderCursor {
  readonly #file: RandomAccessFile;
  readonly #window: Uint8Array;
  readonly #view: DataView;
  /** Strings are UTF-8 by the format's definition; a byte order mark in a token is part of the token. */
  readonly #text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  #windowStart = 0;
  #windowLength = 0;
  #position = 0;

  constructor(file: RandomAccessFile) {
    this.#file = file;
    this.#window = new Uint8Array(Math.min(WINDOW_BYTES, file.sizeBytes));
    this.#view = new DataView(this.#window.buffer);
  }

  /** Byte of the file that is read next. */
  get position(): number {
    return this.#position;
  }

  /** Bytes left in the file. */
  get remaining(): number {
    return this.#file.sizeBytes - this.#position;
  }

  u8(what: string): number {
    return this.#view.getUint8(this.#take(1, what));
  }

  i8(what: string): number {
    return this.#view.getInt8(this.#take(1, what));
  }

  u16(what: string): number {
    return this.#view.getUint16(this.#take(2, what), true);
  }

  i16(what: string): number {
    return this.#view.getInt16(this.#take(2, what), true);
  }

  u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what), true);
  }

  i32(what: string): number {
    return this.#view.getInt32(this.#take(4, what), true);
  }

  f32(what: string): number {
    return this.#view.getFloat32(this.#take(4, what), true);
  }

  u64(what: string): bigint {
    return this.#view.getBigUint64(this.#take(8, what), true);
  }

  i64(what: string): bigint {
    return this.#view.getBigInt64(this.#take(8, what), true);
  }

  f64(what: string): number {
    return this.#view.getFloat64(this.#take(8, what), true);
  }

  /** An unsigned 64-bit count, length or offset that has to be at most `limit`. */
  size(limit: number, what: string): number {
    const at = this.#take(8, what);
    // Not as a bigint: a header has some hundred thousand of them.
    const value = this.#view.getUint32(at + 4, true) * 2 ** 32 + this.#view.getUint32(at, true);
    if (value <= limit) return value;
    const received = String(this.#view.getBigUint64(at, true));
    throw this.invalid(`${what} of at most ${limit}`, received, { field: what });
  }

  /** A length-prefixed string of at most `limitBytes`. */
  string(what: string, limitBytes = MAX_STRING_BYTES): string {
    const length = this.#stringLength(what, limitBytes);
    if (length === 0) return "";
    let bytes: Uint8Array;
    if (length <= this.#window.length) {
      const start = this.#take(length, what);
      bytes = this.#window.subarray(start, start + length);
    } else bytes = this.#readBeyondWindow(length);
    try {
      return this.#text.decode(bytes);
    } catch {
      throw this.invalid(`${what} to be UTF-8`, "other bytes", { field: what });
    }
  }

  /**
   * `count` length-prefixed strings one after the other: decoded all at once. A call of the decoder for each token of a
   * vocabulary takes ten times as long.
   */
  strings(count: number, what: string): PackedStrings {
    const run = new StringRun(count);
    for (let i = 0; i < count; i++) {
      const length = this.#stringLength(what, MAX_STRING_BYTES);
      if (length > this.#window.length) run.push(this.#readBeyondWindow(length), 0, length);
      else run.push(this.#window, this.#take(length, what), length);
    }
    const strings = run.decode(this.#text);
    if (strings === null) throw this.invalid(`${what} to be UTF-8`, "other bytes", { field: what });
    return strings;
  }

  skipString(what: string): void {
    this.skip(this.#stringLength(what, MAX_HEADER_BYTES), what);
  }

  /** `count` length-prefixed strings, passed over. */
  skipStrings(count: number, what: string): void {
    for (let i = 0; i < count; i++) {
      const index = this.#position - this.#windowStart;
      // Most lie in the window, length and all. Anything unusual is seen to the long way.
      if (index >= 0 && index + 8 <= this.#windowLength && this.#view.getUint32(index + 4, true) === 0) {
        const length = this.#view.getUint32(index, true);
        if (index + 8 + length <= this.#windowLength) {
          this.#position += 8 + length;
          continue;
        }
      }
      this.skipString(what);
    }
  }

  skip(count: number, what: string): void {
    this.#demand(count, what);
    this.#position += count;
  }

  /** An error about the header as a whole, or about the field that `details` names. */
  invalid(expected: string, received: string, details: ErrorDetails = {}): CheckpointError {
    return new CheckpointError(
      "INVALID_HEADER",
      `${this.#file.path}: expected ${expected} but received ${received} (before byte ${this.#position})`,
      { file: this.#file.path, ...details, expected, received },
    );
  }

  /** Bytes that have been demanded, and are more than a window holds. */
  #readBeyondWindow(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#file.read(bytes, this.#position);
    this.#position += length;
    return bytes;
  }

  #stringLength(what: string, limitBytes: number): number {
    const length = this.size(limitBytes, `the length of ${what}`);
    this.#demand(length, what);
    return length;
  }

  /** Makes the next `count` bytes (at most a window) available; returns their index in the window. */
  #take(count: number, what: string): number {
    const index = this.#position - this.#windowStart;
    if (index >= 0 && index + count <= this.#windowLength) {
      this.#position += count;
      return index;
    }
    this.#demand(count, what);
    const length = Math.min(this.#window.length, this.remaining);
    this.#file.read(this.#window.subarray(0, length), this.#position);
    this.#windowStart = this.#position;
    this.#windowLength = length;
    this.#position += count;
    return 0;
  }

  #demand(count: number, what: string): void {
    if (count > this.remaining) {
      throw new CheckpointError(
        "TRUNCATED_FILE",
        `${this.#file.path}: expected ${count} bytes of ${what} at byte ${this.#position} but the file ends after ${this.remaining}`,
        { file: this.#file.path, field: what, expected: count, received: this.remaining },
      );
    }
    if (this.#position + count > MAX_HEADER_BYTES) {
      throw this.invalid(`a header of at most ${MAX_HEADER_BYTES} bytes`, `${what} beyond them`, { field: what });
    }
  }
}
