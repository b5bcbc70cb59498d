/**
 * A directory that appears as a whole or not at all: it is filled under another name beside the one it shall have, and
 * renamed when it is complete.
 */
import { randomBytes } from "node:crypto";
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statfsSync,
  statSync,
} from "node:fs";
import { basename, dirname, join, sep } from "node:path";
import { OptionError, ShardloomError } from "../core/errors.js";
import { writeFailed } from "./output-file.js";

export interface OutputDirectoryOptions {
  /** Whether a checkpoint that is there already gives way. */
  readonly overwrite: boolean;
}

export class OutputDirectory {
  /** Where the directory is filled. */
  readonly path: string;
  readonly #target: string;
  readonly #options: OutputDirectoryOptions;

  private constructor(path: string, target: string, options: OutputDirectoryOptions) {
    this.path = path;
    this.#target = target;
    this.#options = options;
  }

  /**
   * Makes the directory that `commit` will rename to `target`. Throws what `checkOutput` throws; ShardloomError
   * `WRITE_FAILED`, or `INSUFFICIENT_SPACE` when the disk has less than `sizeBytes` free.
   */
  static create(target: string, sizeBytes: number, options: OutputDirectoryOptions): OutputDirectory {
    checkOutput(target, options);
    const parent = dirname(target);
    checkSpace(parent, sizeBytes);
    const path = join(parent, `.${basename(target)}.incomplete-${randomBytes(4).toString("hex")}`);
    try {
      mkdirSync(path);
      return new OutputDirectory(path, target, options);
    } catch (error) {
      throw writeFailed(target, error);
    }
  }

  /**
   * Gives the directory its name; a model that has it and may be overwritten is removed. Throws what `checkOutput` throws, as
   * time has passed, or ShardloomError `WRITE_FAILED`.
   */
  commit(): void {
    const target = this.#target;
    checkOutput(target, this.#options);
    // A directory cannot be exchanged for another in one step: for a moment there is none.
    const replaced = existsSync(target) ? `${this.path}.replaced` : null;
    try {
      syncDirectory(this.path);
      if (replaced !== null) renameSync(target, replaced);
      renameSync(this.path, target);
      syncDirectory(dirname(target));
      if (replaced !== null) rmSync(replaced, { recursive: true });
    } catch (error) {
      if (replaced !== null && existsSync(replaced) && !existsSync(target)) renameSync(replaced, target);
      throw writeFailed(target, error);
    }
  }

  /** Removes what was written, unless it has been committed. Throws nothing: it is called because something else went wrong. */
  discard(): void {
    try {
      rmSync(this.path, { recursive: true, force: true });
    } catch {
      // What made the system refuse this is likely to be what went wrong.
    }
  }
}

/**
 * Throws OptionError `OUTPUT_EXISTS` for a path that is taken and may not be overwritten, `INVALID_OUTPUT` for one whose
 * parent is no directory, or that holds anything but a model. `target` is absolute.
 */
export function checkOutput(target: string, { overwrite }: OutputDirectoryOptions): void {
  const status = statusOf(target);
  if (status === null) return;
  if (!overwrite) {
    throw new OptionError(
      "OUTPUT_EXISTS",
      `expected a path where there is nothing yet but received ${target}, which exists (--overwrite replaces a model)`,
      { option: "out", expected: "a new path", received: target, file: target },
    );
  }
  if (!status.isDirectory() || !holdsOnlyModel(target)) {
    throw invalidOutput(target, "a model's directory, or an empty one, to overwrite", "something else");
  }
}

/** What a path is; null where there is nothing yet, and something can be made. Throws `INVALID_OUTPUT` or `WRITE_FAILED`. */
function statusOf(target: string): Stats | null {
  const parent = dirname(target);
  let exists: boolean;
  try {
    exists = statSync(parent, { throwIfNoEntry: false })?.isDirectory() === true;
    if (exists) accessSync(parent, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw writeFailed(target, error);
  }
  if (exists) return lstatSync(target, { throwIfNoEntry: false }) ?? null;
  throw invalidOutput(target, "a path in a directory that exists", `one in ${parent}, which does not`);
}

/** Throws OptionError `INVALID_OUTPUT` when `target` is the model that is read, or in the way of it. */
export function checkOutputApart(target: string, source: string): void {
  if (!existsSync(target)) return;
  const [output, input] = [realpathSync(target), realpathSync(source)];
  if (input !== output && !input.startsWith(output + sep)) return;
  throw invalidOutput(target, "another directory than the model's", "the model's own");
}

/** No directory that somebody keeps other things in is ever removed. */
function holdsOnlyModel(directory: string): boolean {
  const entries = readdirSync(directory, { withFileTypes: true });
  const plain = entries.every((entry) => !entry.isDirectory());
  return entries.length === 0 || (plain && entries.some(({ name }) => name === "config.json"));
}

function checkSpace(directory: string, sizeBytes: number): void {
  const { bavail, bsize, blocks } = statfsSync(directory);
  const free = bavail * bsize;
  // Some file systems do not tell their size.
  if (blocks === 0 || sizeBytes <= free) return;
  throw new ShardloomError(
    "INSUFFICIENT_SPACE",
    `${directory}: expected ${sizeBytes} bytes of free space for the checkpoint but there are ${free}`,
    { file: directory, expected: sizeBytes, received: free },
  );
}

/** Makes names durable. Not every system can open a directory. */
function syncDirectory(path: string): void {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return;
  }
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function invalidOutput(target: string, expected: string, received: string): OptionError {
  return new OptionError("INVALID_OUTPUT", `expected ${target} to be ${expected} but it is ${received}`, {
    option: "out",
    expected,
    received,
    file: target,
  });
}
