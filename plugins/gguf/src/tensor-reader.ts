/** Reads any byte range of a stored tensor as its checkpoint dtype, touching only the blocks that cover it. */
import { dtypeBytes, InternalError, type RandomAccessFile } from "shardloom/plugin";
import type { StoredTensor } from "./tensor-layout.js";

/** Elements dequantized at a time: a multiple of every block size, small enough to stay in the cache. */
const TILE_ELEMENTS = 32_768;

/** Largest head that is gathered in memory to restore the order of its rows; larger ones are read row by row. */
const MAX_HEAD_BYTES = 8 * 1024 * 1024;

export class TensorReader {
  readonly #file: RandomAccessFile;
  readonly #values = new Float32Array(TILE_ELEMENTS);
  readonly #valueBits = new Uint32Array(this.#values.buffer);
  readonly #rounded = new Uint16Array(TILE_ELEMENTS);
  readonly #roundedBytes = new Uint8Array(this.#rounded.buffer);
  #stored = new Uint8Array(0);
  #head = new Uint8Array(0);
  #bytesRead = 0;

  constructor(file: RandomAccessFile) {
    this.#file = file;
  }

  /** Bytes of tensor data read from the file so far. */
  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** Bytes `[byteOffset, byteOffset + destination.length)` of the tensor, in the order of the file. */
  read(tensor: StoredTensor, destination: Uint8Array, byteOffset: number): void {
    if (tensor.format.dequantize === null) {
      this.#readFile(destination, tensor.position + byteOffset);
    } else {
      this.#readBlocks(tensor, tensor.format.dequantize, destination, byteOffset);
    }
  }

  /**
   * As `read`, of the tensor whose rows are in the order that models are published with. The file has the two rows of
   * each rotary pair side by side (0, d/2, 1, d/2 + 1, ... of a head of d rows), because llama.cpp rotates neighbours.
   */
  readUnpermuted(tensor: StoredTensor, heads: number, destination: Uint8Array, byteOffset: number): void {
    const rows = tensor.shape[0] ?? 0;
    const rowBytes = (tensor.shape[1] ?? 1) * dtypeBytes(tensor.format.dtype);
    const headRows = rows / heads;
    const headBytes = headRows * rowBytes;
    if (!Number.isInteger(headRows) || headRows % 2 !== 0) {
      throw new InternalError(`${tensor.name}: ${rows} rows are not ${heads} heads of pairs`);
    }
    let done = 0;
    while (done < destination.length) {
      const at = byteOffset + done;
      const head = Math.floor(at / headBytes);
      const inHead = at - head * headBytes;
      const left = destination.length - done;
      if (inHead === 0 && left >= headBytes && headBytes <= MAX_HEAD_BYTES) {
        this.#readHead(tensor, head, headRows, rowBytes, destination.subarray(done, done + headBytes));
        done += headBytes;
      } else {
        const row = Math.floor(inHead / rowBytes);
        const inRow = inHead - row * rowBytes;
        const count = Math.min(left, rowBytes - inRow);
        const stored = head * headRows + storedRow(row, headRows);
        this.read(tensor, destination.subarray(done, done + count), stored * rowBytes + inRow);
        done += count;
      }
    }
  }

  #readHead(tensor: StoredTensor, head: number, headRows: number, rowBytes: number, destination: Uint8Array): void {
    if (this.#head.length < destination.length) this.#head = new Uint8Array(destination.length);
    this.read(tensor, this.#head.subarray(0, destination.length), head * destination.length);
    for (let row = 0; row < headRows; row++) {
      const from = storedRow(row, headRows) * rowBytes;
      destination.set(this.#head.subarray(from, from + rowBytes), row * rowBytes);
    }
  }

  #readBlocks(
    tensor: StoredTensor,
    dequantize: NonNullable<StoredTensor["format"]["dequantize"]>,
    destination: Uint8Array,
    byteOffset: number,
  ): void {
    const { blockElements, blockBytes } = tensor.format;
    const decodedBytes = blockElements * 2;
    const lastBlock = Math.ceil((byteOffset + destination.length) / decodedBytes);
    const tileBlocks = TILE_ELEMENTS / blockElements;
    for (let block = Math.floor(byteOffset / decodedBytes); block < lastBlock; block += tileBlocks) {
      const count = Math.min(tileBlocks, lastBlock - block);
      if (this.#stored.length < count * blockBytes) this.#stored = new Uint8Array(count * blockBytes);
      const stored = this.#stored.subarray(0, count * blockBytes);
      this.#readFile(stored, tensor.position + block * blockBytes);
      dequantize(stored, count, this.#values);
      this.#round(count * blockElements);
      // Where the range starts or ends inside this tile, in bytes of the decoded tensor.
      const tileStart = block * decodedBytes;
      const from = Math.max(byteOffset - tileStart, 0);
      const to = Math.min(byteOffset + destination.length - tileStart, count * decodedBytes);
      destination.set(this.#roundedBytes.subarray(from, to), tileStart + from - byteOffset);
    }
  }

  /** Rounds the first `count` values to bfloat16, to nearest, ties to even. */
  #round(count: number): void {
    const bits = this.#valueBits;
    const rounded = this.#rounded;
    for (let i = 0; i < count; i++) {
      const value = bits[i] ?? 0;
      rounded[i] =
        (value & 0x7fffffff) > 0x7f800000 ? (value >>> 16) | 0x40 : (value + 0x7fff + ((value >>> 16) & 1)) >>> 16;
    }
  }

  #readFile(destination: Uint8Array, position: number): void {
    this.#file.read(destination, position);
    this.#bytesRead += destination.length;
  }
}

/** Where row `row` of a published head lies among the `headRows` rows of the file's head. */
function storedRow(row: number, headRows: number): number {
  const pairs = headRows / 2;
  return row < pairs ? row * 2 : (row - pairs) * 2 + 1;
}
