/**
 * Weights of which every rank needs more than its own part while they are quantized: the scales of all blocks, of which
 * double quantization takes the mean, or whole rows of which a row-parallel layer keeps some columns. All ranks together
 * quantize each piece once, whoever comes first, and take from it what is theirs.
 */
import {
  type CheckpointTensor,
  elementCount,
  type ReadGroup,
  type SharedItem,
  type SharedPiece,
} from "shardloom/plugin";
import { DYNAMIC_MAP, type FourBitType } from "./codebooks.js";
import { expandAbsmax, quantizeAbsmax } from "./double-quant.js";
import { ElementReader } from "./element-reader.js";
import { CHUNK_ELEMENTS, type FourBitOptions, floatDType, matrixShape } from "./in-flight.js";
import { NESTED_BLOCK } from "./quant-state.js";
import { blockCount, encode, findAbsmax, packedBytes } from "./quantize-4bit.js";
import { quantizeRows } from "./quantize-int8.js";
import type { EightBitWeight, FourBitWeight, TableHolder, TableSlot } from "./quantized-weight.js";

const FLOAT_BYTES = Float32Array.BYTES_PER_ELEMENT;

/** What is shared of some elements: their scales, and then their codes. */
interface QuantizedPiece {
  readonly scales: Float32Array;
  readonly codes: Uint8Array;
}

/** Pieces of one weight, held as long as it is read from. */
class Pieces {
  readonly #group: ReadGroup;
  #held: readonly SharedPiece[] = [];
  #pieces: readonly QuantizedPiece[] | null = null;

  constructor(group: ReadGroup) {
    this.#group = group;
  }

  /** Piece i, with `scalesIn(i)` scales. `items` are made when they are first asked for. */
  of(items: () => readonly SharedItem[], scalesIn: (piece: number) => number): readonly QuantizedPiece[] {
    if (this.#pieces !== null) return this.#pieces;
    this.#held = this.#group.reads.acquire(items(), this.#group.worldSize);
    this.#pieces = this.#held.map(({ bytes }, i) => quantizedPiece(bytes, scalesIn(i)));
    return this.#pieces;
  }

  release(): void {
    for (const piece of this.#held) piece.release();
    this.#held = [];
    this.#pieces = null;
  }
}

/** Memory of `scales` scales and some codes; it begins where an f32 may lie. */
function quantizedPiece(bytes: Uint8Array, scales: number): QuantizedPiece {
  return {
    scales: new Float32Array(bytes.buffer, bytes.byteOffset, scales),
    codes: bytes.subarray(scales * FLOAT_BYTES),
  };
}

/** A float weight as 4-bit codes. The codes and scales of InFlightFourBit, to the bit. */
export class SharedFourBit implements FourBitWeight, TableHolder {
  readonly format = "4bit";
  readonly name: string;
  readonly file: string;
  readonly shape: readonly number[];
  readonly type: FourBitType;
  readonly blockSize: number;
  readonly #doubleQuant: boolean;
  readonly #slot: TableSlot;
  readonly #group: ReadGroup;
  readonly #elements: number;
  readonly #reader: ElementReader;
  readonly #pieces: Pieces;
  #nested: { readonly scales: Float32Array; readonly piece: SharedPiece } | null = null;

  /** Throws CheckpointError `DTYPE_MISMATCH` unless the tensor holds floats. */
  constructor(source: CheckpointTensor, options: FourBitOptions, slot: TableSlot, group: ReadGroup) {
    this.name = source.name;
    this.file = source.file;
    this.shape = source.shape;
    this.type = options.type;
    this.blockSize = options.blockSize;
    this.#doubleQuant = options.doubleQuant;
    this.#slot = slot;
    this.#group = group;
    this.#elements = elementCount(source.shape);
    this.#reader = new ElementReader(source, floatDType(source));
    this.#pieces = new Pieces(group);
  }

  readCodes(destination: Uint8Array, firstByte: number): void {
    const pieces = this.#quantized();
    copyAcross(destination, firstByte, packedBytes(CHUNK_ELEMENTS), (piece) => pieces[piece]?.codes);
  }

  readScales(destination: Float32Array, firstBlock: number): void {
    const pieces = this.#quantized();
    if (this.#doubleQuant) {
      destination.set(this.#nestedScales(pieces).subarray(firstBlock, firstBlock + destination.length));
      return;
    }
    copyAcross(destination, firstBlock, CHUNK_ELEMENTS / this.blockSize, (piece) => pieces[piece]?.scales);
  }

  release(): void {
    this.#nested?.piece.release();
    this.#nested = null;
    this.#pieces.release();
    this.#reader.release();
  }

  #quantized(): readonly QuantizedPiece[] {
    this.#slot.enter(this);
    return this.#pieces.of(
      () => this.#items(),
      (piece) => blockCount(this.#elementsOf(piece), this.blockSize),
    );
  }

  #elementsOf(piece: number): number {
    return Math.min(CHUNK_ELEMENTS, this.#elements - piece * CHUNK_ELEMENTS);
  }

  #items(): readonly SharedItem[] {
    const { name, type, blockSize } = this;
    return Array.from({ length: Math.ceil(this.#elements / CHUNK_ELEMENTS) }, (_, piece) => {
      const firstElement = piece * CHUNK_ELEMENTS;
      const count = this.#elementsOf(piece);
      const blocks = blockCount(count, blockSize);
      return {
        key: `${name} as ${type}, elements from ${firstElement}`,
        sizeBytes: blocks * FLOAT_BYTES + packedBytes(count),
        fill: (bytes: Uint8Array) => {
          const { scales, codes } = quantizedPiece(bytes, blocks);
          const values = this.#reader.read(firstElement, count);
          findAbsmax(values, blockSize, scales, { tensor: name, firstElement });
          encode(type, values, blockSize, scales, codes);
        },
      };
    });
  }

  /** All scales of the tensor, as double quantization leaves them. */
  #nestedScales(pieces: readonly QuantizedPiece[]): Float32Array {
    if (this.#nested !== null) return this.#nested.scales;
    const blocks = blockCount(this.#elements, this.blockSize);
    const item: SharedItem = {
      key: `${this.name}, nested scales`,
      sizeBytes: blocks * FLOAT_BYTES,
      fill: (bytes) => {
        const absmax = new Float32Array(blocks);
        let at = 0;
        for (const { scales } of pieces) {
          absmax.set(scales, at);
          at += scales.length;
        }
        expandAbsmax(quantizeAbsmax(absmax), DYNAMIC_MAP, NESTED_BLOCK, quantizedPiece(bytes, blocks).scales);
      },
    };
    const [piece] = this.#group.reads.acquire([item], this.#group.worldSize);
    if (piece === undefined) return new Float32Array(0);
    const { scales } = quantizedPiece(piece.bytes, blocks);
    this.#nested = { scales, piece };
    return scales;
  }
}

/** A float weight `[rows, columns]` as LLM.int8 codes. The codes and scales of InFlightEightBit, to the bit. */
export class SharedEightBit implements EightBitWeight, TableHolder {
  readonly format = "int8";
  readonly name: string;
  readonly file: string;
  readonly shape: readonly [number, number];
  readonly #slot: TableSlot;
  readonly #reader: ElementReader;
  readonly #pieces: Pieces;
  /** In a piece; the last one may have fewer. */
  readonly #rows: number;

  /** Throws CheckpointError `DTYPE_MISMATCH` unless the tensor holds floats, `SHAPE_MISMATCH` unless it is a matrix. */
  constructor(source: CheckpointTensor, slot: TableSlot, group: ReadGroup) {
    this.name = source.name;
    this.file = source.file;
    this.shape = matrixShape(source);
    this.#slot = slot;
    this.#reader = new ElementReader(source, floatDType(source));
    this.#pieces = new Pieces(group);
    this.#rows = Math.max(1, Math.floor(CHUNK_ELEMENTS / Math.max(1, this.shape[1])));
  }

  readCodes(destination: Uint8Array, firstElement: number): void {
    const pieces = this.#quantized();
    copyAcross(destination, firstElement, this.#rows * this.shape[1], (piece) => pieces[piece]?.codes);
  }

  readScales(destination: Float32Array, firstRow: number): void {
    const pieces = this.#quantized();
    copyAcross(destination, firstRow, this.#rows, (piece) => pieces[piece]?.scales);
  }

  release(): void {
    this.#pieces.release();
    this.#reader.release();
  }

  #quantized(): readonly QuantizedPiece[] {
    this.#slot.enter(this);
    return this.#pieces.of(
      () => this.#items(),
      (piece) => this.#rowsOf(piece),
    );
  }

  #rowsOf(piece: number): number {
    return Math.min(this.#rows, this.shape[0] - piece * this.#rows);
  }

  #items(): readonly SharedItem[] {
    const { name } = this;
    const [rows, columns] = this.shape;
    return Array.from({ length: Math.ceil(rows / this.#rows) }, (_, piece) => {
      const [firstRow, count] = [piece * this.#rows, this.#rowsOf(piece)];
      return {
        key: `${name} as int8, rows from ${firstRow}`,
        sizeBytes: count * (FLOAT_BYTES + columns),
        fill: (bytes: Uint8Array) => {
          const { scales, codes } = quantizedPiece(bytes, count);
          const values = this.#reader.read(firstRow * columns, count * columns);
          const signed = new Int8Array(codes.buffer, codes.byteOffset, codes.length);
          quantizeRows(values, columns, signed, scales, name, firstRow);
        },
      };
    });
  }
}

/** Fills `destination` from element `first` on of a sequence that lies in pieces of so many elements. */
function copyAcross<Elements extends Uint8Array | Float32Array>(
  destination: Elements,
  first: number,
  pieceElements: number,
  pieceOf: (piece: number) => Elements | undefined,
): void {
  const end = first + destination.length;
  for (let at = first; at < end; ) {
    const piece = Math.floor(at / pieceElements);
    const start = piece * pieceElements;
    const stop = Math.min(end, start + pieceElements);
    const elements = pieceOf(piece)?.subarray(at - start, stop - start);
    if (elements !== undefined) destination.set(elements, at - first);
    at = stop;
  }
}
