/**
 * Edits the text of a JSON object, so that what is not edited stays as it is to the byte: readers in other languages tell
 * 6.0 from 6, and know the order of keys, both of which are lost when a value is parsed and formatted again.
 */
import { closingQuote, skipWhitespace, unescaped } from "./duplicate-keys.js";

/** Where a member of an object lies in a text. */
interface Member {
  readonly key: string;
  readonly valueStart: number;
  readonly valueEnd: number;
}

/**
 * Sets members of the outermost object of `text`, which must be valid JSON: each key to a JSON text, in place where the
 * object has it, behind the last member otherwise, indented as the first one is.
 */
export function setMembers(text: string, values: ReadonlyMap<string, string>): string {
  const members = membersOf(text);
  const indent = indentOf(text);
  let edited = "";
  let copied = 0;
  for (const { key, valueStart, valueEnd } of members) {
    const value = values.get(key);
    if (value === undefined) continue;
    edited += text.slice(copied, valueStart) + indented(value, indent);
    copied = valueEnd;
  }
  const known = new Set(members.map(({ key }) => key));
  const added = [...values].filter(([key]) => !known.has(key));
  if (added.length === 0) return edited + text.slice(copied);
  const end = members.at(-1)?.valueEnd ?? text.indexOf("{") + 1;
  const separator = members.length === 0 ? "" : ",";
  const lines = added.map(([key, value]) => `${indent}${JSON.stringify(key)}: ${indented(value, indent)}`);
  return `${edited}${text.slice(copied, end)}${separator}\n${lines.join(",\n")}${endOf(text.slice(end))}`;
}

/** The closing brace on a line of its own, and what follows it. */
function endOf(rest: string): string {
  return rest.trimStart() === rest ? `\n${rest}` : rest;
}

/** Members of the outermost object, in order. */
function membersOf(text: string): readonly Member[] {
  const members: Member[] = [];
  for (let position = text.indexOf("{") + 1; ; ) {
    const start = skipWhitespace(text, position);
    if (text[start] !== '"') return members;
    const quote = closingQuote(text, start);
    const valueStart = skipWhitespace(text, skipWhitespace(text, quote + 1) + 1);
    const valueEnd = endOfValue(text, valueStart);
    members.push({ key: unescaped(text.slice(start, quote + 1)), valueStart, valueEnd });
    position = skipWhitespace(text, valueEnd) + 1;
  }
}

/** Position behind the value that starts at `start`. */
function endOfValue(text: string, start: number): number {
  let depth = 0;
  for (let position = start; position < text.length; position++) {
    const character = text[position];
    if (character === '"') position = closingQuote(text, position);
    else if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]") {
      if (depth === 0) return endOfScalar(text, start, position);
      depth--;
    } else if (character === "," && depth === 0) return endOfScalar(text, start, position);
  }
  return text.length;
}

/** Position behind the last character of `text[start..end)` that is no white space. */
function endOfScalar(text: string, start: number, end: number): number {
  return start + text.slice(start, end).trimEnd().length;
}

/** What stands before the first key on its line; two spaces where there is none. */
function indentOf(text: string): string {
  return /^\s*\{[^\S\n]*\r?\n([ \t]*)"/.exec(text)?.[1] ?? "  ";
}

/** A value of several lines, its lines but the first moved in by `indent`, in steps of which they are taken to be. */
function indented(value: string, indent: string): string {
  return value.replaceAll(/\n( *)/g, (_, spaces: string) => `\n${indent}${indent.repeat(spaces.length / 2)}`);
}
