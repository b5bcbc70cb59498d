/**
 * Many strings as one text and where each of them ends: a vocabulary has some hundred thousand, of which a prompt needs a few
 * hundred, and strings of their own cost more to make and to keep than to read.
 */

/** Plain data: it crosses threads. */
export interface PackedStrings {
  /** All strings, one after the other. */
  readonly text: string;
  /** Where each ends in `text`, in UTF-16 units. */
  readonly ends: Uint32Array;
}

export function packStrings(strings: readonly string[]): PackedStrings {
  const ends = new Uint32Array(strings.length);
  let end = 0;
  for (const [i, string] of strings.entries()) {
    end += string.length;
    ends[i] = end;
  }
  return { text: strings.join(""), ends };
}

export function unpackStrings(strings: PackedStrings): string[] {
  return Array.from(strings.ends, (_, i) => packedString(strings, i) ?? "");
}

/** The string at an index; undefined beyond them. */
export function packedString({ text, ends }: PackedStrings, index: number): string | undefined {
  const end = ends[index];
  return end === undefined ? undefined : text.slice(index === 0 ? 0 : ends[index - 1], end);
}
