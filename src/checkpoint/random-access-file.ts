/** A file read at given positions, synchronously: a rank has nothing else to do while its weights arrive. */
import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { CheckpointError, invariant, isErrnoException, reasonOf } from "../core/errors.js";
import { type NativeAddon, nativeAddon } from "../core/native-addon.js";
import {
  type BlockLayout,
  type BlockRuns,
  codeBytes,
  type GroupedBlocks,
  type SplitBlocks,
  splitBlocks,
} from "./block-layout.js";
import { checkVersion, type OpenFile, versionOf } from "./open-file.js";
import { placeRows } from "./row-groups.js";

/** What `fs.readSync` does; a test passes one that reads less than it is asked for. */
export type ReadAt = (
  fd: number,
  destination: Uint8Array,
  offset: number,
  lengthBytes: number,
  position: number,
) => number;

/** Hears of every read, of a file or of a tensor. How it is done is not told. Reads of a file do not overlap. */
export interface ReadObserver {
  readBegins(): void;
  /** It got so many bytes; none if it failed. Of a tensor whose read fails, nothing more is heard. */
  readEnds(bytes: number): void;
}

/** Runs of bytes at equal distances: a slice of a row-major tensor. */
export interface StridedRuns {
  /** Of the first run. */
  readonly position: number;
  readonly runBytes: number;
  /** From the beginning of a run to that of the next. */
  readonly stride: number;
  readonly runs: number;
}

/** From so many bytes on, or for more runs than one, a read is worth the addon's threads. */
const MIN_NATIVE_BYTES = 1024 * 1024;

/** The most bytes that one read asks for; Linux stops at 2 GiB, and Node refuses more. */
const MAX_READ_BYTES = 1024 * 1024 * 1024;

/** How often a file system that says it is busy is asked again, and after how long; as native/file_binding.cc does. */
const BUSY_TRIES = 25;
const BUSY_MS = 10;

export class RandomAccessFile implements OpenFile {
  readonly path: string;
  readonly version: string;
  /** Size when it was opened. */
  readonly sizeBytes: number;
  readonly #readAt: ReadAt;
  readonly #observer: ReadObserver | undefined;
  /** Whether the addon reads, where it is worth it. */
  readonly #native: boolean;
  /** null once closed: the number may by then belong to another file. */
  #fd: number | null;

  private constructor(
    path: string,
    fd: number,
    version: string,
    sizeBytes: number,
    readAt: ReadAt,
    observer: ReadObserver | undefined,
    native: boolean,
  ) {
    this.path = path;
    this.version = version;
    this.sizeBytes = sizeBytes;
    this.#readAt = readAt;
    this.#observer = observer;
    this.#native = native;
    this.#fd = fd;
  }

  /**
   * Opens a regular file for reading; `observer`, if there is one, hears of every read. Throws CheckpointError
   * `FILE_NOT_FOUND` when there is none, or `READ_FAILED` when it cannot be opened.
   */
  static open(path: string, observer?: ReadObserver, readAt: ReadAt = readSync): RandomAccessFile {
    let fd: number | null = null;
    try {
      // Before opening: that would wait on a named pipe, and have effects on a device.
      if (!statSync(path).isFile()) throw notFound(path, "something that is not a regular file");
      fd = openSync(path, "r");
      const read = observer === undefined ? readAt : observed(readAt, observer);
      const native = readAt === readSync && process.platform !== "win32" && nativeAddon().loaded;
      return new RandomAccessFile(path, fd, versionOf(fd), fstatSync(fd).size, read, observer, native);
    } catch (error) {
      if (fd !== null) closeSync(fd);
      if (error instanceof CheckpointError) throw error;
      if (isErrnoException(error) && (error.code === "ENOENT" || error.code === "ENOTDIR")) {
        throw notFound(path, "no file", error);
      }
      throw readFailed(path, error);
    }
  }

  /**
   * Fills `destination` from byte `position` on. Throws CheckpointError `SHORT_READ` when the file ends before, or
   * `READ_FAILED` when the system reports an error; both name `tensor`, where the bytes are those of one.
   */
  read(destination: Uint8Array, position: number, tensor?: string): void {
    const fd = this.#descriptor();
    if (this.#native && destination.length >= MIN_NATIVE_BYTES) {
      this.#readRunsNative(fd, destination, { position, runBytes: destination.length, stride: 0, runs: 1 }, tensor);
      return;
    }
    let done = 0;
    while (done < destination.length) {
      const wanted = Math.min(destination.length - done, MAX_READ_BYTES);
      const received = this.#readOnce(fd, destination.subarray(done, done + wanted), position + done, tensor);
      if (received === 0) throw shortRead(this.path, tensor, destination.length, position, done);
      done += received;
    }
  }

  /** Some bytes, or none at the end of the file. A signal, or a file system that is busy, only delays it. */
  #readOnce(fd: number, destination: Uint8Array, position: number, tensor: string | undefined): number {
    for (let busy = 0; ; ) {
      try {
        return this.#readAt(fd, destination, 0, destination.length, position);
      } catch (error) {
        const code = isErrnoException(error) ? error.code : undefined;
        if (code === "EINTR") continue;
        if (code !== "EAGAIN" || busy++ === BUSY_TRIES) throw readFailed(this.path, error, tensor);
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, BUSY_MS);
      }
    }
  }

  /** Fills `destination` with runs, one after another. Throws as `read` does. */
  readRuns(destination: Uint8Array, strided: StridedRuns, tensor?: string): void {
    const { position, runBytes, stride, runs } = strided;
    if (this.#native && runs > 1) {
      this.#readRunsNative(this.#descriptor(), destination, strided, tensor);
      return;
    }
    for (let run = 0; run < runs; run++) {
      this.read(destination.subarray(run * runBytes, (run + 1) * runBytes), position + run * stride, tensor);
    }
  }

  /**
   * Reads runs of blocks and takes them apart, block after block. Throws as `read` does; InternalError unless the arrays of
   * `to` have exactly the bytes of all blocks.
   */
  readBlocks(layout: BlockLayout, runs: BlockRuns, to: SplitBlocks, tensor?: string): void {
    const { blockBytes, headerBytes } = layout;
    const count = runs.blocks * runs.runs;
    const [codes, headers] = [count * codeBytes(layout), count * headerBytes];
    invariant(
      to.codes.length === codes && to.headers.length === headers,
      `${this.path}: expected ${codes} and ${headers} bytes for ${count} blocks but received ${to.codes.length} and ${to.headers.length}`,
    );
    const fd = this.#descriptor();
    if (this.#native) {
      this.#readBlocksNative(fd, layout, runs, { ...to, rowBlocks: 0, firstRow: 0 }, tensor);
      return;
    }
    const stored = new Uint8Array(runs.blocks * blockBytes);
    for (let run = 0; run < runs.runs; run++) {
      this.read(stored, runs.position + run * runs.stride, tensor);
      const part = (bytes: Uint8Array): Uint8Array => bytes.subarray((bytes.length / runs.runs) * run);
      splitBlocks(layout, stored, runs.blocks, { codes: part(to.codes), headers: part(to.headers) });
    }
  }

  /** The same of runs of whole rows, whose codes go to a matrix in groups. Throws as `readBlocks` does. */
  readBlockGroups(layout: BlockLayout, runs: BlockRuns, to: GroupedBlocks, tensor?: string): void {
    const { groups, firstRow, rowBlocks, headers } = to;
    const { matrix, rowBytes } = groups;
    const fits =
      rowBytes === rowBlocks * codeBytes(layout) && groups.codeBits === layout.codeBits && rowBytes % 4 === 0;
    invariant(fits, `${this.path}: rows of ${rowBlocks} blocks are no rows of ${rowBytes} bytes in groups`);
    if (this.#native) {
      const parts = { codes: matrix, headers, rowBlocks, firstRow };
      this.#readBlocksNative(this.#descriptor(), layout, runs, parts, tensor);
      return;
    }
    const codes = new Uint8Array(runs.blocks * runs.runs * codeBytes(layout));
    this.readBlocks(layout, runs, { codes, headers }, tensor);
    placeRows(codes, groups, firstRow);
  }

  /** Has the addon read runs; `read` returns the bytes before the first that the file does not have. */
  #readNative(
    { position, runBytes, stride, runs }: StridedRuns,
    tensor: string | undefined,
    read: (addon: NativeAddon) => number,
  ): void {
    const native = nativeAddon();
    invariant(native.loaded, `${this.path} was opened with the addon, which is gone`);
    let received = 0;
    this.#observer?.readBegins();
    try {
      received = read(native.addon);
    } catch (error) {
      throw readFailed(this.path, error, tensor);
    } finally {
      this.#observer?.readEnds(received);
    }
    if (received === runBytes * runs) return;
    const run = Math.floor(received / runBytes);
    throw shortRead(this.path, tensor, runBytes, position + run * stride, received - run * runBytes);
  }

  #readRunsNative(fd: number, destination: Uint8Array, strided: StridedRuns, tensor: string | undefined): void {
    const { position, runBytes, stride, runs } = strided;
    this.#readNative(strided, tensor, (addon) => addon.readRuns(fd, position, runBytes, stride, runs, destination));
  }

  #readBlocksNative(
    fd: number,
    layout: BlockLayout,
    { position, blocks, stride, runs }: BlockRuns,
    { codes, headers, rowBlocks, firstRow }: SplitBlocks & { readonly rowBlocks: number; readonly firstRow: number },
    tensor: string | undefined,
  ): void {
    const { blockBytes, codesOffset, groups, groupBytes, codeBits, headerOffset, headerBytes } = layout;
    this.#readNative({ position, runBytes: blocks * blockBytes, stride, runs }, tensor, (addon) =>
      addon.readBlocks(
        fd,
        position,
        blocks,
        stride,
        runs,
        blockBytes,
        codesOffset,
        groups,
        groupBytes,
        codeBits,
        headerOffset,
        headerBytes,
        codes,
        headers,
        rowBlocks,
        firstRow,
      ),
    );
  }

  checkUnchanged(): void {
    checkVersion(this.#descriptor(), this);
  }

  #descriptor(): number {
    invariant(this.#fd !== null, `${this.path} is read after it was closed`);
    return this.#fd;
  }

  /** Releases the file; a second call does nothing. */
  close(): void {
    const fd = this.#fd;
    this.#fd = null;
    if (fd !== null) closeSync(fd);
  }
}

function observed(readAt: ReadAt, observer: ReadObserver): ReadAt {
  return (fd, destination, offset, lengthBytes, position) => {
    let received = 0;
    observer.readBegins();
    try {
      received = readAt(fd, destination, offset, lengthBytes, position);
      return received;
    } finally {
      observer.readEnds(received);
    }
  };
}

/** The error of a read of `expected` bytes that found `received` of them. */
export function shortRead(
  file: string,
  tensor: string | undefined,
  expected: number,
  position: number,
  received: number,
): CheckpointError {
  const what = tensor === undefined ? "" : ` of ${tensor}`;
  return new CheckpointError(
    "SHORT_READ",
    `${file}: expected ${expected} bytes${what} at offset ${position} but the file ended after ${received}`,
    { file, expected, received, ...(tensor === undefined ? {} : { tensor }) },
  );
}

function notFound(path: string, received: string, cause?: unknown): CheckpointError {
  return new CheckpointError(
    "FILE_NOT_FOUND",
    `${path}: expected a file but found ${received}`,
    { file: path },
    { cause },
  );
}

function readFailed(file: string, cause: unknown, tensor?: string): CheckpointError {
  const reason = reasonOf(cause);
  const what = tensor === undefined ? file : `${tensor} in ${file}`;
  const details = { file, reason, ...(tensor === undefined ? {} : { tensor }) };
  return new CheckpointError("READ_FAILED", `cannot read ${what}: ${reason}`, details, { cause });
}
