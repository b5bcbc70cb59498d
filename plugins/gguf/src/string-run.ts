import type { TextDecoder } from "node:util";
import type { PackedStrings } from "shardloom/plugin";

/** Guess of the bytes of a string, to begin with. */
const BYTES_PER_STRING = 16;

/** Strings in UTF-8 that are gathered one by one, to be decoded together. */
export class StringRun {
  #bytes: Uint8Array;
  #size = 0;
  /** Where each string ends in the text of all, in UTF-16 units. */
  readonly #ends: Uint32Array;
  #count = 0;
  #units = 0;
  /** Whether every string begins with a character, and not within one. */
  #whole = true;

  constructor(count: number) {
    this.#ends = new Uint32Array(count);
    this.#bytes = new Uint8Array(count * BYTES_PER_STRING);
  }

  /** Takes the next string: `length` bytes of `source` from `start` on. */
  push(source: Uint8Array, start: number, length: number): void {
    if (this.#size + length > this.#bytes.length) this.#grow(length);
    const bytes = this.#bytes;
    const end = start + length;
    let to = this.#size;
    let units = 0;
    for (let at = start; at < end; at++) {
      const byte = source[at] ?? 0;
      bytes[to++] = byte;
      // Bytes 10xxxxxx go on with a character; one that begins with 11110xxx is two units of UTF-16.
      if ((byte & 0xc0) !== 0x80) units += byte >= 0xf0 ? 2 : 1;
      else if (at === start) this.#whole = false;
    }
    this.#size = to;
    this.#units += units;
    this.#ends[this.#count++] = this.#units;
  }

  /** The strings; null if one is not UTF-8. `decoder` must be fatal. */
  decode(decoder: TextDecoder): PackedStrings | null {
    if (!this.#whole) return null;
    try {
      return { text: decoder.decode(this.#bytes.subarray(0, this.#size)), ends: this.#ends };
    } catch {
      return null;
    }
  }

  #grow(length: number): void {
    const bytes = new Uint8Array(2 * this.#bytes.length + length);
    bytes.set(this.#bytes.subarray(0, this.#size));
    this.#bytes = bytes;
  }
}
