/**
 * Finds stop texts in a text that arrives in pieces. Text that may turn out to be the beginning of a stop text is held
 * back until that is decided.
 *
 * The result does not depend on how the text is cut: it ends with the first character that completes a stop text, as if
 * characters came one by one (Knuth, Morris, Pratt 1977, one automaton per stop text; linear time).
 */

/** One stop text and the state of its automaton. */
interface StopString {
  readonly text: string;
  /** Length of the longest proper prefix of `text` that ends the first i + 1 units of it. */
  readonly fallback: Int32Array;
  /** Length of the longest prefix of `text` that ends the text seen so far. */
  matched: number;
}

export class StopStringMatcher {
  readonly #strings: readonly StopString[];
  readonly #include: boolean;
  #held = "";
  #stopped = false;

  /** `include`: let a stop text that was found pass as part of the text. */
  constructor(stop: readonly string[], include: boolean) {
    this.#strings = stop.map((text) => ({ text, fallback: fallbacksOf(text), matched: 0 }));
    this.#include = include;
  }

  /** Whether a stop text was found; nothing passes any more. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes the next piece of text, returns what may be shown now. */
  push(text: string): string {
    if (this.#stopped) return "";
    if (this.#strings.length === 0) return text;
    const seen = this.#held + text;
    for (let end = this.#held.length; end < seen.length; end++) {
      const found = this.#advance(seen.charCodeAt(end));
      if (found === 0) continue;
      this.#stopped = true;
      this.#held = "";
      return seen.slice(0, this.#include ? end + 1 : end + 1 - found);
    }
    let held = 0;
    for (const { matched } of this.#strings) held = Math.max(held, matched);
    this.#held = seen.slice(seen.length - held);
    return seen.slice(0, seen.length - held);
  }

  /** What is held back, once no more text comes. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Moves every automaton by one UTF-16 unit. Returns the length of the longest stop text that it completes, or 0. */
  #advance(unit: number): number {
    let found = 0;
    for (const string of this.#strings) {
      const { text, fallback } = string;
      let matched = string.matched;
      while (matched > 0 && text.charCodeAt(matched) !== unit) matched = fallback[matched - 1] ?? 0;
      if (text.charCodeAt(matched) === unit) matched++;
      string.matched = matched;
      if (matched === text.length) found = Math.max(found, matched);
    }
    return found;
  }
}

function fallbacksOf(text: string): Int32Array {
  const fallback = new Int32Array(text.length);
  let matched = 0;
  for (let i = 1; i < text.length; i++) {
    while (matched > 0 && text.charCodeAt(i) !== text.charCodeAt(matched)) matched = fallback[matched - 1] ?? 0;
    if (text.charCodeAt(i) === text.charCodeAt(matched)) matched++;
    fallback[i] = matched;
  }
  return fallback;
}
