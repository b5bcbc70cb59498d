/**
 * JSON.parse keeps the last of several equal keys and says nothing; a file that describes one tensor twice would then
 * mean something else to every reader.
 */

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const COLON = 0x3a;

/**
 * The first key that an object in `text` has twice, or null. Keys are compared as they are after unescaping (`"a"` and
 * `"\u0061"` are one key), in objects at any depth, without recursion. `text` must be valid JSON (JSON.parse accepted
 * it): the scan relies on that to tell a key from a value by the colon behind it.
 */
export function findDuplicateKey(text: string): string | null {
  // The keys so far of every open container, from the outside in; null for an array.
  const open: (Set<string> | null)[] = [];
  for (let position = 0; position < text.length; position++) {
    switch (text.charCodeAt(position)) {
      case OPEN_BRACE:
        open.push(new Set());
        break;
      case OPEN_BRACKET:
        open.push(null);
        break;
      case CLOSE_BRACE:
      case CLOSE_BRACKET:
        open.pop();
        break;
      case QUOTE: {
        const start = position;
        position = closingQuote(text, start);
        const keys = open.at(-1);
        if (keys && text.charCodeAt(skipWhitespace(text, position + 1)) === COLON) {
          const key = unescaped(text.slice(start, position + 1));
          if (keys.has(key)) return key;
          keys.add(key);
        }
        break;
      }
    }
  }
  return null;
}

/** Position of the quote that ends the string which starts at `start`. */
export function closingQuote(text: string, start: number): number {
  let position = start + 1;
  while (position < text.length) {
    const character = text.charCodeAt(position);
    if (character === QUOTE) return position;
    position += character === BACKSLASH ? 2 : 1;
  }
  return position;
}

/** Position of the first character from `start` on that is not one of JSON's four spaces. */
export function skipWhitespace(text: string, start: number): number {
  let position = start;
  for (;;) {
    const character = text.charCodeAt(position);
    if (character !== 0x20 && character !== 0x0a && character !== 0x0d && character !== 0x09) return position;
    position++;
  }
}

/** The string that a JSON literal, quotes included, stands for. */
export function unescaped(literal: string): string {
  return literal.includes("\\") ? String(JSON.parse(literal)) : literal.slice(1, -1);
}
