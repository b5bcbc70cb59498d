/**
 * Memory of tensors: arenas over SharedArrayBuffers. The usable part of an arena starts on a 2 MiB boundary of the
 * address space and is advised as huge pages before its first touch; every tensor in it is 64-byte aligned. Pages are
 * not touched here: the thread that first writes a tensor owns its pages (first touch).
 *
 * An arena knows nothing of ranks or threads: it may be handed to another thread by its `buffer` and `base`.
 */
import { type DType, dtypeBytes } from "./dtype.js";
import { InternalError, reasonOf, ShardloomError } from "./errors.js";
import { nativeAddon } from "./native-addon.js";
import { elementCount, type Tensor } from "./tensor.js";

export const TENSOR_ALIGNMENT = 64;
export const HUGE_PAGE_BYTES = 2 * 1024 * 1024;

/** Alignment promised even without the addon, which alone can see addresses. */
const PORTABLE_ALIGNMENT = 16;

const roundUp = (value: number, multiple: number): number => Math.ceil(value / multiple) * multiple;

/** What another thread needs to see the same arena. */
export interface ArenaHandle {
  readonly name: string;
  readonly buffer: SharedArrayBuffer;
  readonly base: number;
  readonly capacity: number;
}

export class Arena {
  readonly name: string;
  readonly buffer: SharedArrayBuffer;
  /** Byte offset in `buffer` of the first usable, aligned byte. */
  readonly base: number;
  /** Usable bytes. */
  readonly capacity: number;
  #used = 0;

  private constructor(handle: ArenaHandle) {
    this.name = handle.name;
    this.buffer = handle.buffer;
    this.base = handle.base;
    this.capacity = handle.capacity;
  }

  /** Reserves `capacity` bytes. Throws ShardloomError `OUT_OF_MEMORY` when the system refuses. */
  static create(name: string, capacity: number): Arena {
    if (!Number.isSafeInteger(capacity) || capacity < 0) {
      throw new InternalError(`arena ${name}: expected a capacity in bytes but received ${capacity}`);
    }
    const native = nativeAddon();
    const large = native.loaded && capacity >= HUGE_PAGE_BYTES;
    const alignment = !native.loaded ? PORTABLE_ALIGNMENT : large ? HUGE_PAGE_BYTES : TENSOR_ALIGNMENT;
    const buffer = reserve(name, capacity + alignment);
    const base = native.loaded
      ? (alignment - native.addon.addressModulo(new Uint8Array(buffer), alignment)) % alignment
      : 0;
    if (native.loaded && large) native.addon.adviseHugePages(new Uint8Array(buffer, base, capacity));
    return new Arena({ name, buffer, base, capacity });
  }

  /** An arena without memory: its tensors have shapes and no bytes. */
  static virtual(name: string): Arena {
    return new Arena({ name, buffer: new SharedArrayBuffer(0), base: 0, capacity: 0 });
  }

  /** The arena that another thread created; allocating from it is the creator's business. */
  static from(handle: ArenaHandle): Arena {
    const arena = new Arena(handle);
    arena.#used = arena.capacity;
    return arena;
  }

  get handle(): ArenaHandle {
    return { name: this.name, buffer: this.buffer, base: this.base, capacity: this.capacity };
  }

  get usedBytes(): number {
    return this.#used;
  }

  get freeBytes(): number {
    return this.capacity - roundUp(this.#used, TENSOR_ALIGNMENT);
  }

  /** A zeroed tensor, 64-byte aligned. Throws InternalError when the arena is full. */
  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor {
    const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
      throw new InternalError(`arena ${this.name}: impossible shape [${shape.join(", ")}] for ${name}`);
    }
    const offset = roundUp(this.#used, TENSOR_ALIGNMENT);
    if (offset + sizeBytes > this.capacity) {
      throw new InternalError(
        `arena ${this.name} is full: ${name} needs ${sizeBytes} bytes, ${this.freeBytes} are free`,
      );
    }
    this.#used = offset + sizeBytes;
    return { name, dtype, shape: [...shape], arena: this, byteOffset: this.base + offset };
  }
}

function reserve(name: string, sizeBytes: number): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(sizeBytes);
  } catch (error) {
    throw new ShardloomError(
      "OUT_OF_MEMORY",
      `cannot reserve ${sizeBytes} bytes for ${name}: ${reasonOf(error)}`,
      { expected: sizeBytes },
      { cause: error },
    );
  }
}

/** Whatever tensors come from. */
export interface TensorAllocator {
  /** A zeroed tensor. Throws ShardloomError `OUT_OF_MEMORY`. */
  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor;
  /** Bytes handed out so far. */
  readonly usedBytes: number;
}

/** Allocates tensors from arenas of `chunkBytes`, adding arenas as they fill. Larger tensors get an arena of their own. */
export class ArenaAllocator implements TensorAllocator {
  readonly #name: string;
  readonly #chunkBytes: number;
  readonly #arenas: Arena[] = [];

  constructor(name: string, chunkBytes = 128 * 1024 * 1024) {
    this.#name = name;
    this.#chunkBytes = chunkBytes;
  }

  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor {
    const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
    const last = this.#arenas.at(-1);
    if (last !== undefined && last.freeBytes >= sizeBytes) return last.allocate(name, dtype, shape);
    const arena = Arena.create(`${this.#name}.${this.#arenas.length}`, Math.max(this.#chunkBytes, sizeBytes));
    // An arena made for one large tensor must not hide the room left in the current chunk.
    if (sizeBytes > this.#chunkBytes) this.#arenas.unshift(arena);
    else this.#arenas.push(arena);
    return arena.allocate(name, dtype, shape);
  }

  get usedBytes(): number {
    return this.#arenas.reduce((sum, arena) => sum + arena.usedBytes, 0);
  }
}

/** Tensors that are counted and not stored: what a model of any size would take, on a machine of any size. */
export class VirtualAllocator implements TensorAllocator {
  readonly #arena: Arena;
  #usedBytes = 0;

  constructor(name: string) {
    this.#arena = Arena.virtual(name);
  }

  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor {
    this.#usedBytes = roundUp(this.#usedBytes, TENSOR_ALIGNMENT) + elementCount(shape) * dtypeBytes(dtype);
    return { name, dtype, shape: [...shape], arena: this.#arena, byteOffset: 0 };
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }
}
