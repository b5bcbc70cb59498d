/**
 * Scales and minimums of one tensor, kept from when its codes were read: all three lie in the same blocks, and whoever
 * reads the codes of a matrix reads its scales next. So a block is read from the file and unpacked once.
 */
import type { StoredTensor } from "./tensor-layout.js";
import type { BlockFormat, BlockValues } from "./unpacking.js";

/** Room for the values of a tensor, as whatever dtype it has. Memory is kept for the next one. */
class ValueBuffer {
  #memory = new ArrayBuffer(0);
  #values: BlockValues = new Uint16Array(0);

  get values(): BlockValues {
    return this.#values;
  }

  prepare(dtype: BlockFormat["valueDType"], count: number): void {
    const bytes = count * (dtype === "f16" ? 2 : 4);
    if (this.#memory.byteLength < bytes) this.#memory = new ArrayBuffer(bytes);
    this.#values = dtype === "f16" ? new Uint16Array(this.#memory, 0, count) : new Float32Array(this.#memory, 0, count);
  }
}

export class ScaleStash {
  #scales = new ValueBuffer();
  #minimums = new ValueBuffer();
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
    const { valueDType = "f32", hasMinimums = false } = tensor.format.blocks ?? {};
    this.#scales.prepare(valueDType, scales);
    this.#minimums.prepare(valueDType, hasMinimums ? scales : 0);
  }

  /** Whether the scales of `count` blocks from `block` on are here. */
  knows(block: number, count: number): boolean {
    return !this.#known.subarray(block, block + count).includes(0);
  }

  /** The same blocks are here from now on. */
  note(block: number, count: number): void {
    this.#known.fill(1, block, block + count);
  }

  scales(block: number, count: number): BlockValues {
    return this.#scales.values.subarray(block * this.#scalesPerBlock, (block + count) * this.#scalesPerBlock);
  }

  minimums(block: number, count: number): BlockValues {
    return this.#minimums.values.subarray(block * this.#scalesPerBlock, (block + count) * this.#scalesPerBlock);
  }

  /** Gives the memory back. */
  release(): void {
    this.#scales = new ValueBuffer();
    this.#minimums = new ValueBuffer();
    this.#known = new Uint8Array(0);
    this.#tensor = null;
  }
}
