/**
 * Quantized weights as the rest of the plugin sees them, whether they lie on disk so or are quantized while they are read.
 * All positions are in the whole, unsharded tensor: nothing here knows a rank.
 */
import type { FourBitType } from "./codebooks.js";

/** 4-bit codes on one grid of blocks through the whole tensor, with one f32 scale a block. */
export interface FourBitWeight {
  readonly format: "4bit";
  /** Name of the weight on disk, `model.layers.0.mlp.down_proj.weight`. */
  readonly name: string;
  readonly file: string;
  readonly shape: readonly number[];
  readonly type: FourBitType;
  /** Elements to a scale. */
  readonly blockSize: number;
  /** Bytes from `firstByte` on: element 2i in the high half of byte i, element 2i + 1 in the low half. */
  readCodes(destination: Uint8Array, firstByte: number): void;
  /** Scales from block `firstBlock` on, nested ones expanded. Throws CheckpointError `NON_FINITE_SCALE`. */
  readScales(destination: Float32Array, firstBlock: number): void;
}

/** 8-bit codes, with one f32 scale a row. */
export interface EightBitWeight {
  readonly format: "int8";
  readonly name: string;
  readonly file: string;
  /** `[rows, columns]` */
  readonly shape: readonly [number, number];
  /** Codes, as bytes, from element `firstElement` on. */
  readCodes(destination: Uint8Array, firstElement: number): void;
  /** Scales from row `firstRow` on. Throws CheckpointError `NON_FINITE_SCALE`. */
  readScales(destination: Float32Array, firstRow: number): void;
}

export type QuantizedWeight = FourBitWeight | EightBitWeight;

/** A weight that keeps buffers and tables it could make again, for as long as it is read from. */
export interface TableHolder {
  release(): void;
}

/**
 * Lets one weight at a time keep buffers: tensors are loaded one after another, so the last one read is the only one that
 * will be read from again. What loading holds beside the model is thereby bounded by one tensor.
 */
export class TableSlot {
  #holder: TableHolder | null = null;

  /** Makes `holder` the one that keeps its buffers. */
  enter(holder: TableHolder): void {
    if (this.#holder !== holder) this.#holder?.release();
    this.#holder = holder;
  }
}
