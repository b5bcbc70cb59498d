/** Where the tensors of a simulated rank come from: small arenas, within a limit if there is one. */
import { ArenaAllocator, type TensorAllocator, VirtualAllocator } from "../core/arena.js";
import { type DType, dtypeBytes } from "../core/dtype.js";
import { ShardloomError } from "../core/errors.js";
import { describeShape, elementCount, type Tensor } from "../core/tensor.js";
import type { AllocatorFactory } from "../layers/model-memory.js";

/** Dozens of ranks share a process here: none of them reserves what a rank of its own would. */
const CHUNK_BYTES = 256 * 1024;

/** The memory of one rank: all of its allocators count towards one limit. */
export function simulatedMemory(rank: number, shapeOnly: boolean, limitBytes: number | undefined): AllocatorFactory {
  const budget = new Budget(rank, limitBytes ?? Number.POSITIVE_INFINITY);
  return (name) =>
    new LimitedAllocator(shapeOnly ? new VirtualAllocator(name) : new ArenaAllocator(name, CHUNK_BYTES), budget);
}

class Budget {
  readonly #rank: number;
  readonly #limitBytes: number;
  #usedBytes = 0;

  constructor(rank: number, limitBytes: number) {
    this.#rank = rank;
    this.#limitBytes = limitBytes;
  }

  take(name: string, dtype: DType, shape: readonly number[]): void {
    this.#usedBytes += elementCount(shape) * dtypeBytes(dtype);
    if (this.#usedBytes <= this.#limitBytes) return;
    throw new ShardloomError(
      "OUT_OF_MEMORY",
      `rank ${this.#rank}: expected all tensors to fit into ${this.#limitBytes} bytes but ${name} ` +
        `${describeShape(dtype, shape)} would make it ${this.#usedBytes}`,
      { rank: this.#rank, tensor: name, expected: this.#limitBytes, received: this.#usedBytes },
    );
  }
}

class LimitedAllocator implements TensorAllocator {
  readonly #allocator: TensorAllocator;
  readonly #budget: Budget;

  constructor(allocator: TensorAllocator, budget: Budget) {
    this.#allocator = allocator;
    this.#budget = budget;
  }

  allocate(name: string, dtype: DType, shape: readonly number[]): Tensor {
    this.#budget.take(name, dtype, shape);
    return this.#allocator.allocate(name, dtype, shape);
  }

  get usedBytes(): number {
    return this.#allocator.usedBytes;
  }
}
