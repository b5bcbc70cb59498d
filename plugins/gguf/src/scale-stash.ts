/**
 * Scales and minimums of one tensor, kept from when its codes were read: all three lie in the same blocks, and whoever
 * reads the codes of a matrix reads its scales next. So a block is read from the file and unpacked once.
 */
import type { StoredTensor } from "./tensor-layout.js";

export class ScaleStash {
  #scales = new Float32Array(0);
  #minimums = new Float32Array(0);
  /** 1 for each block whose scales are here. */
  #known = new Uint8Array(0);
  #tensor: StoredTensor | null = null;
  #scalesPerBlock = 1;

  /** Makes room for a tensor, and forgets another one. Memory is kept for the next; its pages are touched as they fill. */
  prepare(tensor: StoredTensor, scalesPerBlock: number): void {
    if (this.#tensor === tensor) return;
    const blocks = tensor.sizeBytes / tensor.format.blockBytes;
    const scales = blocks * scalesPerBlock;
    this.#tensor = tensor;
    this.#scalesPerBlock = scalesPerBlock;
    if (this.#known.length < blocks) this.#known = new Uint8Array(blocks);
    else this.#known.fill(0, 0, blocks);
    if (this.#scales.length < scales) this.#scales = new Float32Array(scales);
    if (tensor.format.blocks?.hasMinimums && this.#minimums.length < scales) this.#minimums = new Float32Array(scales);
  }

  /** Whether the scales of `count` blocks from `block` on are here. */
  knows(block: number, count: number): boolean {
    return !this.#known.subarray(block, block + count).includes(0);
  }

  /** The same blocks are here from now on. */
  note(block: number, count: number): void {
    this.#known.fill(1, block, block + count);
  }

  scales(block: number, count: number): Float32Array {
    return this.#scales.subarray(block * this.#scalesPerBlock, (block + count) * this.#scalesPerBlock);
  }

  minimums(block: number, count: number): Float32Array {
    return this.#minimums.subarray(block * this.#scalesPerBlock, (block + count) * this.#scalesPerBlock);
  }

  /** Gives the memory back. */
  release(): void {
    this.#scales = new Float32Array(0);
    this.#minimums = new Float32Array(0);
    this.#known = new Uint8Array(0);
    this.#tensor = null;
  }
}
