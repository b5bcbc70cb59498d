/** A file that appears as a whole or not at all: written under another name beside the one it shall have, and renamed. */
import { randomBytes } from "node:crypto";
import { accessSync, constants, realpathSync, renameSync, rmSync, type Stats, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { OutputFile, writeFailed } from "./output-file.js";

/**
 * Throws ShardloomError `WRITE_FAILED` for a path that `writeWholeFile` is bound to fail on: for whoever computes for long
 * what is to be written.
 */
export function checkWholeFile(path: string): void {
  try {
    const { target, status } = resolved(path);
    if (status?.isDirectory() === true) throw new Error("it is a directory");
    if (status === null || status.isFile()) {
      if (!statSync(dirname(target)).isDirectory()) throw new Error(`${dirname(target)} is not a directory`);
      accessSync(dirname(target), constants.W_OK | constants.X_OK);
    } else accessSync(target, constants.W_OK);
  } catch (error) {
    throw writeFailed(path, error);
  }
}

/**
 * Writes a file, in place of the one that is there. What is no regular file, such as /dev/stderr or a pipe, is written to and
 * stays. After an error there is what was there before. Throws ShardloomError `WRITE_FAILED`.
 */
export function writeWholeFile(path: string, text: string): void {
  checkWholeFile(path);
  const { target, status } = resolved(path);
  if (status !== null && !status.isFile()) {
    writeThrough(path, text);
    return;
  }
  const unfinished = join(dirname(target), `.${basename(target)}.incomplete-${randomBytes(4).toString("hex")}`);
  try {
    const file = OutputFile.create(unfinished);
    try {
      file.write(new TextEncoder().encode(text), 0);
      file.sync();
    } finally {
      file.close();
    }
    renameSync(unfinished, target);
  } catch (error) {
    rmSync(unfinished, { force: true });
    throw writeFailed(path, error instanceof Error && error.cause !== undefined ? error.cause : error);
  }
}

/** Where a link leads to, and what is there; null where there is nothing yet. */
function resolved(path: string): { readonly target: string; readonly status: Stats | null } {
  const status = statSync(path, { throwIfNoEntry: false }) ?? null;
  return { target: status === null ? path : realpathSync(path), status };
}

function writeThrough(path: string, text: string): void {
  try {
    writeFileSync(path, text);
  } catch (error) {
    throw writeFailed(path, error);
  }
}
