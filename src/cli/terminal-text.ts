/**
 * Text of others (models, files, plugins) made safe for a terminal, which would obey the control sequences in it:
 * control characters show as escapes.
 */

/** Longest error message shown; names in hostile files have no limit of their own. */
const MAX_LINE_LENGTH = 2000;

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Keeps newlines and tabs and shows other control characters as `\u001b`. */
export function printable(text: string): string {
  return text.replace(CONTROL, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The text on one line, of limited length. */
export function oneLine(text: string): string {
  const line = printable(text.replace(/\s*[\r\n]+\s*/g, " ").trim());
  return line.length <= MAX_LINE_LENGTH ? line : `${line.slice(0, MAX_LINE_LENGTH)}...`;
}
