/** From the text behind a flag to its value. What these functions return throws OptionError that names the flag. */
import { OptionError } from "../core/errors.js";
import { checkWorldSize } from "../core/rank.js";

/** A whole number in decimal digits. Throws OptionError `INVALID_OPTION`. */
export function wholeNumber(flag: string, least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw invalid(flag, `a whole number ${range}`, text);
  };
}

/** A decimal number; `expected` puts what `accepts` wants into words. Throws OptionError `INVALID_OPTION`. */
export function realNumber(
  flag: string,
  expected: string,
  accepts: (value: number) => boolean,
): (text: string) => number {
  return (text) => {
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    if (accepts(value)) return value;
    throw invalid(flag, `a number ${expected}`, text);
  };
}

/** One of a few words. Throws OptionError `INVALID_OPTION`. */
export function oneOf<Word extends string>(flag: string, words: readonly Word[]): (text: string) => Word {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return word;
    throw invalid(flag, `one of ${words.join(", ")}`, text);
  };
}

/** A number of ranks. Throws OptionError `INVALID_WORLD_SIZE`. */
export function worldSize(flag: string): (text: string) => number {
  return (text) => checkWorldSize(/^\d+$/.test(text) ? Number(text) : JSON.stringify(text), flag);
}

/** Token ids between commas or spaces. Throws OptionError `INVALID_TOKEN_ID`. */
export function tokenIds(flag: string): (text: string) => readonly number[] {
  return (text) => parseTokenIds(text, flag);
}

/** Token ids between commas or white space, from `source`. Throws OptionError `INVALID_TOKEN_ID`. */
export function parseTokenIds(text: string, source: string): readonly number[] {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  return words.map((word) => {
    if (/^\d+$/.test(word)) return Number(word);
    throw invalid(source, "token ids, whole numbers between commas or spaces", word, "INVALID_TOKEN_ID");
  });
}

/** For a flag that may be given several times. */
export function collect(text: string, previous: readonly string[] = []): readonly string[] {
  return [...previous, text];
}

function invalid(flag: string, expected: string, text: string, code = "INVALID_OPTION"): OptionError {
  const received = JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}...` : text);
  return new OptionError(code, `expected ${flag} to be ${expected} but received ${received}`, {
    option: flag,
    expected,
    received,
  });
}
