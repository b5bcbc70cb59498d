/**
 * Who owns which block of the paged KV cache. Blocks are numbers; the memory behind them is the ranks' business, and so
 * is its layout. A block belongs to one table or to nobody. (vLLM's paged attention, Kwon et al. 2023.)
 */
import { invariant } from "../core/errors.js";

/** The blocks of one sequence, in order of position. Changed by the pool alone. */
export class BlockTable {
  #blocks = new Int32Array(8);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Block number of the tokens at positions `[index * blockSize, (index + 1) * blockSize)`. */
  at(index: number): number {
    invariant(index >= 0 && index < this.#length, "a position lies in a block that its sequence does not hold");
    return this.#blocks[index] ?? 0;
  }

  /** Only for the pool. */
  append(block: number): void {
    if (this.#length === this.#blocks.length) {
      const larger = new Int32Array(this.#length * 2);
      larger.set(this.#blocks);
      this.#blocks = larger;
    }
    this.#blocks[this.#length++] = block;
  }

  /** Only for the pool. */
  removeLast(): number {
    invariant(this.#length > 0, "an empty block table has no last block");
    return this.#blocks[--this.#length] ?? 0;
  }
}

/** All blocks of a KV cache. */
export class BlockPool {
  readonly blocks: number;
  /** Tokens a block holds. */
  readonly blockSize: number;
  /** Free block numbers; a stack, the last one is taken first. */
  readonly #free: Int32Array;
  #freeCount: number;
  /** 1 for a block that some table holds. */
  readonly #held: Uint8Array;

  constructor(blocks: number, blockSize: number) {
    invariant(Number.isInteger(blocks) && blocks > 0, `a KV cache needs at least one block, not ${blocks}`);
    invariant(Number.isInteger(blockSize) && blockSize > 0, `a block holds at least one token, not ${blockSize}`);
    this.blocks = blocks;
    this.blockSize = blockSize;
    this.#free = Int32Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
    this.#freeCount = blocks;
    this.#held = new Uint8Array(blocks);
  }

  get freeBlocks(): number {
    return this.#freeCount;
  }

  /** Blocks that `tokens` tokens of one sequence take. */
  blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.blockSize);
  }

  /** Blocks that `table` lacks to hold `tokens` tokens. */
  missing(table: BlockTable, tokens: number): number {
    return Math.max(0, this.blocksFor(tokens) - table.length);
  }

  /** Adds to `table` the blocks it lacks to hold `tokens` tokens. There must be as many free. */
  grow(table: BlockTable, tokens: number): void {
    const count = this.missing(table, tokens);
    invariant(count <= this.#freeCount, "more blocks were taken than are free");
    for (let i = 0; i < count; i++) {
      const block = this.#free[--this.#freeCount] ?? -1;
      invariant(this.#held[block] === 0, "a block was free and held at once");
      this.#held[block] = 1;
      table.append(block);
    }
  }

  /** Takes all blocks of `table` back. */
  release(table: BlockTable): void {
    while (table.length > 0) {
      const block = table.removeLast();
      invariant(this.#held[block] === 1, "a block was released that nobody holds");
      this.#held[block] = 0;
      this.#free[this.#freeCount++] = block;
    }
  }
}
