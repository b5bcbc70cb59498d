/**
 * From token ids to text, one token at a time. What is returned is final: a character whose bytes are not complete yet
 * is held back, so no broken character is ever shown, and the pieces put together are the text of all tokens decoded at
 * once. Time is linear in the number of tokens.
 */

export interface Detokenizer {
  /** Takes the next token, returns the text that became certain. */
  push(id: number): string;
  /** What is held back, once no more tokens come: an incomplete character becomes U+FFFD. */
  flush(): string;
}

/** A token as a decoder sees it. */
export interface TokenPiece {
  /** The token as the vocabulary spells it. */
  readonly text: string;
  /** Stands for its own spelling, whatever the decoder does to others. */
  readonly verbatim: boolean;
}

/** Looks up a token; undefined for those that leave no trace in the text: special ones, and ids without a token. */
export type PieceLookup = (id: number) => TokenPiece | undefined;

const REPLACEMENT = "\ufffd";

/**
 * Byte-level vocabularies (GPT-2, Llama 3, Qwen): a token is a run of bytes, each spelt as one printable character.
 * Bytes go through a streaming UTF-8 decoder, which knows exactly what is incomplete, even where no token boundary is a
 * character boundary.
 */
export class ByteLevelDetokenizer implements Detokenizer {
  readonly #lookup: PieceLookup;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(lookup: PieceLookup) {
    this.#lookup = lookup;
  }

  push(id: number): string {
    const piece = this.#lookup(id);
    if (piece === undefined) return "";
    if (piece.verbatim) return this.flush() + piece.text;
    return this.#utf8.decode(bytesOfPiece(piece.text), { stream: true });
  }

  flush(): string {
    return this.#utf8.decode();
  }
}

const encoder = new TextEncoder();

/** The byte that each code point below 0x144 spells; -1 for none. */
const byteOfCodePoint: Int16Array = byteLevelAlphabet();

/**
 * The alphabet of byte-level tokenizers: printable Latin-1 characters spell themselves, other bytes in ascending order
 * the code points from 0x100 on. (openai/gpt-2, src/encoder.py, bytes_to_unicode.)
 */
function byteLevelAlphabet(): Int16Array {
  const table = new Int16Array(0x144).fill(-1);
  let next = 0x100;
  for (let byte = 0; byte < 0x100; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    table[printable ? byte : next++] = byte;
  }
  return table;
}

/** A token that is not spelt in the alphabet stands for its UTF-8 bytes, as in Hugging Face's tokenizers. */
function bytesOfPiece(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = byteOfCodePoint[text.charCodeAt(i)] ?? -1;
    if (byte < 0) return encoder.encode(text);
    bytes[i] = byte;
  }
  return bytes;
}

/** Tokens that stay in the window as context of the next ones: more than a character has bytes. */
const CONTEXT_TOKENS = 8;

/**
 * Any other vocabulary, whose decoder is a black box: a window of the last tokens is decoded again with each new one.
 *
 * What a decoder makes of a token depends on whether it comes first (a leading space is dropped) and, where tokens are
 * bytes, on those of the same character. Both reach no further than the context, so tokens before it can be forgotten:
 * the text of the window may then begin differently, but it goes on in the same way.
 */
export class WindowDetokenizer implements Detokenizer {
  readonly #lookup: PieceLookup;
  readonly #decode: (ids: number[]) => string;
  #window: number[] = [];
  /** UTF-16 units of the window's text that have been returned. */
  #shown = 0;

  /** `decode` gives the text of a run of tokens, none of which `lookup` leaves out. */
  constructor(lookup: PieceLookup, decode: (ids: number[]) => string) {
    this.#lookup = lookup;
    this.#decode = decode;
  }

  push(id: number): string {
    if (this.#lookup(id) === undefined) return "";
    this.#window.push(id);
    const text = this.#decode(this.#window);
    // Only the last replacement character can still become another one.
    const certain = text.endsWith(REPLACEMENT) ? text.length - REPLACEMENT.length : text.length;
    const piece = text.slice(this.#shown, certain);
    this.#shown = Math.max(this.#shown, certain);
    if (this.#window.length % CONTEXT_TOKENS === 0) this.#forget(text.length - this.#shown);
    return piece;
  }

  flush(): string {
    const text = this.#window.length === 0 ? "" : this.#decode(this.#window);
    const rest = text.slice(this.#shown);
    this.#shown = text.length;
    return rest;
  }

  /** Drops the tokens before the context; `held` is how much of the window's text is held back. */
  #forget(held: number): void {
    const context = this.#window.slice(-CONTEXT_TOKENS);
    const text = this.#decode(context);
    // Tokens without any text do not tell where the text goes on.
    if (text.length <= held) return;
    this.#window = context;
    this.#shown = text.length - held;
  }
}
