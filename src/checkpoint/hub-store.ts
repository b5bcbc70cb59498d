/** What is written into the hub's cache: streamed, checked, and only then given its name. */
import { createHash, type Hash, randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { copyFile, mkdir, open, rename, rm, symlink, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { CheckpointError, reasonOf } from "../core/errors.js";

/** What the hub's listing says about a file. */
export interface RemoteFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** Names the blob in the cache. */
  readonly etag: string;
  /** Digest that the content must have; null where the hub gives none that can be computed from it. */
  readonly digest: { readonly algorithm: "sha256" | "git-sha1"; readonly hex: string } | null;
}

/**
 * Makes `snapshot/path` a link to the blob of `file` below `repositoryFolder`, downloading it unless the blob is there.
 * `source` opens the content; `onBytes` hears of every chunk.
 *
 * Several processes may do the same at once: each writes a file of its own and renames it at the end, so that a blob is
 * whole from the moment it has its name. Throws CheckpointError `HUB_CONTENT_MISMATCH` for content of another length or
 * digest, `CACHE_WRITE_FAILED` when the cache cannot be written, and what `source` throws.
 */
export async function storeFile(
  repositoryFolder: string,
  snapshot: string,
  file: RemoteFile,
  source: () => Promise<AsyncIterable<Uint8Array>>,
  onBytes: (sizeBytes: number) => void,
): Promise<void> {
  const blob = join(repositoryFolder, "blobs", file.etag);
  const pointer = join(snapshot, file.path);
  await writing(blob, () => mkdir(dirname(blob), { recursive: true }));
  await writing(pointer, () => mkdir(dirname(pointer), { recursive: true }));
  if (!existsSync(blob)) await download(blob, file, source, onBytes);
  await writing(pointer, () => link(blob, pointer));
}

/** Writes the commit that a revision stands for, so that no reader ever sees half of it. Throws `CACHE_WRITE_FAILED`. */
export async function storeRef(file: string, commit: string): Promise<void> {
  const temporary = incompleteName(file);
  await writing(file, async () => {
    await mkdir(dirname(file), { recursive: true });
    try {
      await writeFile(temporary, commit);
      await rename(temporary, file);
    } finally {
      await rm(temporary, { force: true });
    }
  });
}

async function download(
  blob: string,
  file: RemoteFile,
  source: () => Promise<AsyncIterable<Uint8Array>>,
  onBytes: (sizeBytes: number) => void,
): Promise<void> {
  const incomplete = incompleteName(blob);
  try {
    await receive(incomplete, file, source, onBytes);
    await writing(blob, () => rename(incomplete, blob));
  } finally {
    await rm(incomplete, { force: true });
  }
}

async function receive(
  path: string,
  file: RemoteFile,
  source: () => Promise<AsyncIterable<Uint8Array>>,
  onBytes: (sizeBytes: number) => void,
): Promise<void> {
  const hash = startDigest(file);
  const output = await writing(path, () => open(path, "wx"));
  let received = 0;
  try {
    // An empty file has no bytes to ask for.
    for await (const chunk of file.sizeBytes === 0 ? [] : await source()) {
      received += chunk.length;
      if (received > file.sizeBytes) throw mismatch(file, `${file.sizeBytes} bytes`, "more");
      hash?.update(chunk);
      await writing(path, () => output.writeFile(chunk));
      onBytes(chunk.length);
    }
    if (received !== file.sizeBytes) throw mismatch(file, `${file.sizeBytes} bytes`, `${received}`);
    const digest = hash?.digest("hex");
    if (digest !== file.digest?.hex) throw mismatch(file, `digest ${file.digest?.hex}`, String(digest));
    // The name must not outlive a power cut that the bytes did not.
    await writing(path, () => output.sync());
  } finally {
    await output.close();
  }
}

/** Git hashes a blob behind a header with its length; Git LFS hashes the content alone. */
function startDigest({ digest, sizeBytes }: RemoteFile): Hash | null {
  if (digest === null) return null;
  if (digest.algorithm === "sha256") return createHash("sha256");
  return createHash("sha1").update(`blob ${sizeBytes}\0`);
}

/** Links as a whole: a link that another process made meanwhile is replaced by an equal one. */
async function link(blob: string, pointer: string): Promise<void> {
  const temporary = incompleteName(pointer);
  try {
    await symlink(relative(dirname(pointer), blob), temporary).catch((error: NodeJS.ErrnoException) => {
      // Windows without the privilege, or a file system without links.
      if (error.code !== "EPERM" && error.code !== "ENOTSUP" && error.code !== "ENOSYS") throw error;
      return copyFile(blob, temporary);
    });
    await rename(temporary, pointer);
  } finally {
    await rm(temporary, { force: true });
  }
}

function incompleteName(path: string): string {
  return `${path}.${randomUUID()}.incomplete`;
}

async function writing<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    const reason = reasonOf(cause);
    throw new CheckpointError(
      "CACHE_WRITE_FAILED",
      `cannot write ${path} in the hub's cache: ${reason}`,
      { file: path, reason },
      { cause },
    );
  }
}

function mismatch({ path }: RemoteFile, expected: string, received: string): CheckpointError {
  return new CheckpointError(
    "HUB_CONTENT_MISMATCH",
    `${path}: expected ${expected} from the hub but received ${received}`,
    { file: path, expected, received },
  );
}
