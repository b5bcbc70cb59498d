/** One .safetensors file: its table is read and checked when it is opened, its tensors when somebody asks. */
import { dtypeBytes } from "../core/dtype.js";
import { CheckpointError } from "../core/errors.js";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.js";
import type { OpenFile } from "./open-file.js";
import { RandomAccessFile, type ReadAt, type ReadObserver } from "./random-access-file.js";
import {
  type HeaderEntry,
  headerLength,
  LENGTH_BYTES,
  parseHeader,
  type SafetensorsHeader,
} from "./safetensors-header.js";
import { readByRuns, type SliceRange, stridedRuns } from "./slice.js";

export class SafetensorsFile implements Checkpoint {
  readonly path: string;
  /** The free-form strings under `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  /** In the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly #file: RandomAccessFile;
  #bytesRead = 0;

  private constructor(file: RandomAccessFile) {
    const { header, dataStart } = readHeader(file);
    this.path = file.path;
    this.#file = file;
    this.metadata = header.metadata;
    this.tensors = new Map(header.entries.map((entry) => [entry.name, this.#tensor(entry, dataStart)]));
  }

  /**
   * Opens `path`, reads its header and nothing else, and keeps the file open until `close`. Throws CheckpointError
   * `FILE_NOT_FOUND`, `READ_FAILED`, `FILE_TOO_SHORT`, or one of the codes of `headerLength` and `parseHeader`.
   */
  static open(path: string, readAt?: ReadAt, observer?: ReadObserver): SafetensorsFile {
    const file = RandomAccessFile.open(path, observer, readAt);
    try {
      return new SafetensorsFile(file);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  get bytesRead(): number {
    return this.#bytesRead;
  }

  get openFiles(): readonly OpenFile[] {
    return [this.#file];
  }

  close(): void {
    this.#file.close();
  }

  #tensor({ name, dtype, shape, begin, end }: HeaderEntry, dataStart: number): CheckpointTensor {
    const sizeBytes = end - begin;
    const read = (destination: Uint8Array, byteOffset: number): void => {
      if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset + destination.length > sizeBytes) {
        throw new RangeError(
          `${name}: expected a read within its ${sizeBytes} bytes but received offset ${byteOffset}, length ${destination.length}`,
        );
      }
      this.#file.read(destination, dataStart + begin + byteOffset, name);
      this.#bytesRead += destination.length;
    };
    const readSlice = (ranges: readonly SliceRange[], destination: Uint8Array): void => {
      const strided = stridedRuns(shape, dtypeBytes(dtype), ranges);
      if (strided === null) {
        const tensor = { name, dtype, shape, file: this.path, read };
        readByRuns(tensor, ranges, destination);
        return;
      }
      if (destination.length === 0) return;
      const { offset, ...runs } = strided;
      this.#file.readRuns(destination, { position: dataStart + begin + offset, ...runs }, name);
      this.#bytesRead += destination.length;
    };
    return { name, dtype, shape, file: this.path, read, readSlice };
  }
}

function readHeader(file: RandomAccessFile): { header: SafetensorsHeader; dataStart: number } {
  const { path, sizeBytes } = file;
  if (sizeBytes < LENGTH_BYTES) {
    throw new CheckpointError(
      "FILE_TOO_SHORT",
      `${path}: expected a safetensors file of at least ${LENGTH_BYTES} bytes but received ${sizeBytes}`,
      { file: path, expected: LENGTH_BYTES, received: sizeBytes },
    );
  }
  const prefix = new Uint8Array(LENGTH_BYTES);
  file.read(prefix, 0);
  const bytes = new Uint8Array(headerLength(prefix, sizeBytes, path));
  file.read(bytes, LENGTH_BYTES);
  const dataStart = LENGTH_BYTES + bytes.length;
  return { header: parseHeader(bytes, sizeBytes - dataStart, path), dataStart };
}
