/**
 * Weights that are quantized while they are loaded. Blocks, rows and the groups of double quantization are those of the
 * whole tensor, so that a rank which needs a few codes reads the blocks or rows around them: however many ranks there
 * are, and wherever they cut, every one gets the codes and scales that the unsharded weight has.
 */
import { type CheckpointTensor, elementCount, type FloatDType, isFloat } from "shardloom/plugin";
import { describeTensor, invalid } from "./checkpoint-error.js";
import { DYNAMIC_MAP, type FourBitType } from "./codebooks.js";
import { expandAbsmax, quantizeAbsmax } from "./double-quant.js";
import { ElementReader } from "./element-reader.js";
import { NESTED_BLOCK } from "./quant-state.js";
import { blockCount, encode, findAbsmax, packedBytes } from "./quantize-4bit.js";
import { quantizeRows } from "./quantize-int8.js";
import type { EightBitWeight, FourBitWeight, TableHolder, TableSlot } from "./quantized-weight.js";

/** Elements read and quantized at a time, at least; a multiple of every block size. */
export const CHUNK_ELEMENTS = 65_536;

export interface FourBitOptions {
  readonly type: FourBitType;
  readonly blockSize: number;
  readonly doubleQuant: boolean;
}

/** A float weight as 4-bit codes. */
export class InFlightFourBit implements FourBitWeight, TableHolder {
  readonly format = "4bit";
  readonly name: string;
  readonly file: string;
  readonly shape: readonly number[];
  readonly type: FourBitType;
  readonly blockSize: number;
  readonly #doubleQuant: boolean;
  readonly #slot: TableSlot;
  readonly #elements: number;
  readonly #reader: ElementReader;
  #codes = new Uint8Array(0);
  /** Of every block of the tensor; NaN where it has not been computed. */
  #absmax: Float32Array | null = null;
  #nested: Float32Array | null = null;

  /** Throws CheckpointError `DTYPE_MISMATCH` unless the tensor holds floats. */
  constructor(source: CheckpointTensor, { type, blockSize, doubleQuant }: FourBitOptions, slot: TableSlot) {
    this.name = source.name;
    this.file = source.file;
    this.shape = source.shape;
    this.type = type;
    this.blockSize = blockSize;
    this.#doubleQuant = doubleQuant;
    this.#slot = slot;
    this.#elements = elementCount(source.shape);
    this.#reader = new ElementReader(source, floatDType(source));
  }

  readCodes(destination: Uint8Array, firstByte: number): void {
    const { blockSize } = this;
    const absmax = this.#table();
    const end = firstByte + destination.length;
    for (let byte = firstByte; byte < end; ) {
      const block = Math.floor((2 * byte) / blockSize);
      const values = this.#readBlocks(block, blockCount(2 * end, blockSize));
      const scales = absmax.subarray(block, block + blockCount(values.length, blockSize));
      this.#findAbsmax(values, block, scales);
      if (this.#codes.length < packedBytes(values.length)) this.#codes = new Uint8Array(packedBytes(values.length));
      encode(this.type, values, blockSize, scales, this.#codes);
      const first = (block * blockSize) / 2;
      const stop = Math.min(end, first + packedBytes(values.length));
      destination.set(this.#codes.subarray(byte - first, stop - first), byte - firstByte);
      byte = stop;
    }
  }

  readScales(destination: Float32Array, firstBlock: number): void {
    const end = firstBlock + destination.length;
    if (this.#doubleQuant) {
      this.#slot.enter(this);
      this.#nested ??= this.#quantizeScales();
      destination.set(this.#nested.subarray(firstBlock, end));
      return;
    }
    this.#complete(firstBlock, end);
    destination.set(this.#table().subarray(firstBlock, end));
  }

  release(): void {
    this.#absmax = null;
    this.#nested = null;
    this.#codes = new Uint8Array(0);
    this.#reader.release();
  }

  #table(): Float32Array {
    this.#slot.enter(this);
    this.#absmax ??= new Float32Array(blockCount(this.#elements, this.blockSize)).fill(Number.NaN);
    return this.#absmax;
  }

  /** Elements of blocks from `block` on, up to `end` or to the end of a chunk. */
  #readBlocks(block: number, end: number): Float32Array {
    const first = block * this.blockSize;
    const last = Math.min(end, block + CHUNK_ELEMENTS / this.blockSize) * this.blockSize;
    return this.#reader.read(first, Math.min(last, this.#elements) - first);
  }

  #findAbsmax(values: Float32Array, block: number, absmax: Float32Array): void {
    findAbsmax(values, this.blockSize, absmax, { tensor: this.name, firstElement: block * this.blockSize });
  }

  /** Computes the absmax of blocks `[first, end)` where reading codes has not done so already. */
  #complete(first: number, end: number): void {
    const absmax = this.#table();
    for (let block = first; block < end; ) {
      if (!Number.isNaN(absmax[block])) {
        block++;
        continue;
      }
      const values = this.#readBlocks(block, end);
      const count = blockCount(values.length, this.blockSize);
      this.#findAbsmax(values, block, absmax.subarray(block, block + count));
      block += count;
    }
  }

  /** All scales of the tensor, as double quantization leaves them. */
  #quantizeScales(): Float32Array {
    const absmax = this.#table();
    this.#complete(0, absmax.length);
    const scales = new Float32Array(absmax.length);
    expandAbsmax(quantizeAbsmax(absmax), DYNAMIC_MAP, NESTED_BLOCK, scales);
    return scales;
  }
}

/** A float weight `[rows, columns]` as LLM.int8 codes. */
export class InFlightEightBit implements EightBitWeight, TableHolder {
  readonly format = "int8";
  readonly name: string;
  readonly file: string;
  readonly shape: readonly [number, number];
  readonly #slot: TableSlot;
  readonly #reader: ElementReader;
  #codes = new Int8Array(0);
  /** Of every row of the tensor; NaN where it has not been computed. */
  #scales: Float32Array | null = null;

  /** Throws CheckpointError `DTYPE_MISMATCH` unless the tensor holds floats, `SHAPE_MISMATCH` unless it is a matrix. */
  constructor(source: CheckpointTensor, slot: TableSlot) {
    this.name = source.name;
    this.file = source.file;
    this.shape = matrixShape(source);
    this.#slot = slot;
    this.#reader = new ElementReader(source, floatDType(source));
  }

  readCodes(destination: Uint8Array, firstElement: number): void {
    const [, columns] = this.shape;
    const end = firstElement + destination.length;
    for (let element = firstElement; element < end; ) {
      const row = Math.floor(element / columns);
      const rows = this.#quantize(row, Math.ceil(end / columns));
      const first = row * columns;
      const stop = Math.min(end, first + rows * columns);
      const codes = new Uint8Array(this.#codes.buffer, element - first, stop - element);
      destination.set(codes, element - firstElement);
      element = stop;
    }
  }

  readScales(destination: Float32Array, firstRow: number): void {
    const end = firstRow + destination.length;
    const scales = this.#table();
    for (let row = firstRow; row < end; ) {
      if (Number.isNaN(scales[row])) row += this.#quantize(row, end);
      else row++;
    }
    destination.set(scales.subarray(firstRow, end));
  }

  release(): void {
    this.#scales = null;
    this.#codes = new Int8Array(0);
    this.#reader.release();
  }

  #table(): Float32Array {
    this.#slot.enter(this);
    this.#scales ??= new Float32Array(this.shape[0]).fill(Number.NaN);
    return this.#scales;
  }

  /** Quantizes rows from `row` on, up to `end` or as many as a chunk holds, and returns how many. */
  #quantize(row: number, end: number): number {
    const [, columns] = this.shape;
    const rows = Math.min(end - row, Math.max(1, Math.floor(CHUNK_ELEMENTS / columns)));
    const values = this.#reader.read(row * columns, rows * columns);
    if (this.#codes.length < values.length) this.#codes = new Int8Array(values.length);
    quantizeRows(values, columns, this.#codes, this.#table().subarray(row, row + rows), this.name, row);
    return rows;
  }
}

/** Throws CheckpointError `SHAPE_MISMATCH` unless the tensor is a matrix. */
export function matrixShape(source: CheckpointTensor): readonly [number, number] {
  const [rows, columns] = source.shape;
  if (rows === undefined || columns === undefined || source.shape.length !== 2) {
    throw invalid("SHAPE_MISMATCH", source, "[rows, columns] to quantize", describeTensor(source));
  }
  return [rows, columns];
}

/** Throws CheckpointError `DTYPE_MISMATCH` unless the tensor holds floats. */
export function floatDType(tensor: CheckpointTensor): FloatDType {
  if (isFloat(tensor.dtype)) return tensor.dtype;
  throw invalid("DTYPE_MISMATCH", tensor, "f32, bf16 or f16 to quantize", describeTensor(tensor));
}
