/**
 * Memory a model computes in: activations reused in every step, constants, and the paged KV cache. All of it is
 * allocated once, when a rank is set up; a step allocates nothing.
 */
import { ArenaAllocator, type TensorAllocator } from "../core/arena.js";
import type { DType } from "../core/dtype.js";
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { f32Of, i32Of, isVirtual } from "../core/tensor.js";
import type { Kernels, KvCache } from "../kernels/kernels.js";
import { type KvCacheDType, kvElementDtype } from "../kernels/kv-cache-dtype.js";

/** Makes an allocator; `chunkBytes` is how much it should reserve at a time. */
export type AllocatorFactory = (name: string, chunkBytes?: number) => TensorAllocator;

export interface ModelMemoryOptions {
  readonly name: string;
  readonly kernels: Kernels;
  /** Rows of activations: tokens in one step. */
  readonly maxTokens: number;
  /** Longest sequence. */
  readonly maxPositions: number;
  readonly kvCacheDtype: KvCacheDType;
  /** Tokens a block of KV cache holds. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Where tensors come from; arenas by default. */
  readonly allocator?: AllocatorFactory;
}

export class ModelMemory {
  readonly maxTokens: number;
  readonly maxPositions: number;
  readonly #options: ModelMemoryOptions;
  readonly #buffers: TensorAllocator;
  readonly #cache: TensorAllocator;
  readonly #operands = new Map<string, Operand>();

  constructor(options: ModelMemoryOptions) {
    this.#options = options;
    this.maxTokens = options.maxTokens;
    this.maxPositions = options.maxPositions;
    const allocator = options.allocator ?? ((name, chunkBytes) => new ArenaAllocator(name, chunkBytes));
    this.#buffers = allocator(`${options.name}.activations`, 16 * 1024 * 1024);
    this.#cache = allocator(`${options.name}.kv-cache`);
  }

  /** f32 `[rows, columns]`. Asked for again by the same name, it is the same buffer and must have the same shape. */
  activation(name: string, rows: number, columns: number): Operand {
    const existing = this.#operands.get(name);
    if (existing !== undefined) {
      if (existing.rows === rows && existing.columns === columns) return existing;
      throw new InternalError(
        `activation ${name} is [${existing.rows}, ${existing.columns}], wanted [${rows}, ${columns}]`,
      );
    }
    const operand = this.#options.kernels.bind(this.#buffers.allocate(name, "f32", [rows, columns]));
    this.#operands.set(name, operand);
    return operand;
  }

  /** i32 `[values.length]` constants. */
  integers(name: string, values: readonly number[]): Operand {
    const tensor = this.#buffers.allocate(name, "i32", [values.length]);
    if (!isVirtual(tensor)) i32Of(tensor).set(values);
    return this.#options.kernels.bind(tensor);
  }

  /** f32 `[rows, columns]` constants, filled once; the same operand for the same name. */
  constants(name: string, rows: number, columns: number, fill: (out: Float32Array) => void): Operand {
    const existing = this.#operands.get(name);
    if (existing !== undefined) return existing;
    const tensor = this.#buffers.allocate(name, "f32", [rows, columns]);
    if (!isVirtual(tensor)) fill(f32Of(tensor));
    const operand = this.#options.kernels.bind(tensor);
    this.#operands.set(name, operand);
    return operand;
  }

  /** The paged KV cache of one layer on this rank. Its pages are touched when tokens are first written to them. */
  kvCache(layer: number, kvHeads: number, headSize: number): KvCache {
    const { kernels, blocks, blockSize, kvCacheDtype } = this.#options;
    const allocate = (name: string, dtype: DType, shape: readonly number[]) =>
      kernels.bind(this.#cache.allocate(`layers.${layer}.${name}`, dtype, shape));
    const dtype = kvElementDtype(kvCacheDtype);
    const keys = allocate("keys", dtype, [blocks, kvHeads, headSize, blockSize]);
    const values = allocate("values", dtype, [blocks, kvHeads, blockSize, headSize]);
    const scales = kvCacheDtype === "int8" ? allocate("scales", "f32", [blocks, kvHeads, 2, blockSize]) : null;
    return { keys, values, scales, kvHeads, headSize, blockSize };
  }

  /** Bytes of activations and constants. */
  get activationBytes(): number {
    return this.#buffers.usedBytes;
  }

  /** Bytes reserved for the KV cache. */
  get kvCacheBytes(): number {
    return this.#cache.usedBytes;
  }
}
