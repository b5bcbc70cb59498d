/** Files that must stay as they are while they are read, and the same for all who read them. */
import { type BigIntStats, fstatSync, statSync } from "node:fs";
import { CheckpointError, cannotRead, isErrnoException } from "../core/errors.js";

/** A version of a file. Plain data: it crosses threads. */
export interface FileVersion {
  readonly path: string;
  /** Device, inode, size and time of the last change: another one where the file was replaced or written to. */
  readonly version: string;
}

/** A file that is open. */
export interface OpenFile extends FileVersion {
  /**
   * Throws CheckpointError `FILE_CHANGED` unless the file is still what was opened, and still has its name; `READ_FAILED`
   * where the system does not say.
   */
  checkUnchanged(): void;
}

/** The version of what is open. Throws what the system throws. */
export function versionOf(fd: number): string {
  return describe(fstatSync(fd, { bigint: true }));
}

/** Throws as OpenFile.checkUnchanged. */
export function checkVersion(fd: number, { path, version }: FileVersion): void {
  const open = answerOf(path, () => fstatSync(fd, { bigint: true }));
  if (describe(open) !== version) throw changed(path, version, describe(open), "it was written to");
  const named = answerOf(path, () => statSync(path, { bigint: true, throwIfNoEntry: false }));
  if (named === undefined) throw changed(path, version, "no file", "it was removed");
  if (describe(named) !== version) throw changed(path, version, describe(named), "another one took its place");
}

/** How often files are checked while they are read: who waits for a large model is told soon. */
const CHECK_INTERVAL_MS = 250;

/** The share of the time that checks may take: a server may be slow to answer for many files. */
const CHECK_SHARE = 0.02;

/**
 * Returns what checks files if it has not done so for a while; it is called again and again while they are read. Throws as
 * OpenFile.checkUnchanged. `now` is a clock in milliseconds.
 */
export function checkNowAndThen(files: readonly OpenFile[], now = (): number => performance.now()): () => void {
  let due = now() + CHECK_INTERVAL_MS;
  return () => {
    const started = now();
    if (started < due) return;
    for (const file of files) file.checkUnchanged();
    const ended = now();
    due = ended + Math.max(CHECK_INTERVAL_MS, (ended - started) / CHECK_SHARE);
  };
}

/** Throws CheckpointError `FILE_CHANGED` unless all have opened the same files; `readers` say who they are. */
export function checkSameVersions(
  readers: readonly { readonly name: string; readonly files: readonly FileVersion[] }[],
): void {
  const first = new Map<string, { readonly name: string; readonly version: string }>();
  for (const { name, files } of readers) {
    for (const { path, version } of files) {
      const other = first.get(path);
      if (other === undefined) first.set(path, { name, version });
      else if (other.version !== version) {
        throw changed(path, other.version, version, `${name} opened another one than ${other.name}`);
      }
    }
  }
}

function describe({ dev, ino, size, mtimeNs }: BigIntStats): string {
  return `device ${dev}, inode ${ino}, ${size} bytes, changed at ${mtimeNs} ns`;
}

function answerOf<Answer>(path: string, ask: () => Answer): Answer {
  try {
    return ask();
  } catch (cause) {
    if (isErrnoException(cause) && cause.code === "ENOENT")
      throw changed(path, "the file", "no file", "it was removed");
    throw cannotRead(path, cause);
  }
}

function changed(file: string, expected: string, received: string, what: string): CheckpointError {
  return new CheckpointError(
    "FILE_CHANGED",
    `${file}: expected the file to stay as it is while it is read but ${what}: expected ${expected} but received ${received}`,
    { file, expected, received },
  );
}
