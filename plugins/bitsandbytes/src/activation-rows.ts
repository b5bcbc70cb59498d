/**
 * Activations as LLM.int8 multiplies them (Dettmers et al. 2022): rounded to f16, columns with an outlier kept apart, the
 * rest quantized to 8 bits by row. Memory is sized when layers are made; nothing is allocated here afterwards.
 */
import { roundToF16, roundToInteger } from "./rounding.js";

const { fround } = Math;

/** Rows worked on at a time. */
export const ROWS_AT_A_TIME = 16;

export class ActivationRows {
  /** i8 `[ROWS_AT_A_TIME, inputs]`; 0 in outlier columns. */
  codes = new Int8Array(0);
  /** Largest magnitude below the threshold of each row (SCA). */
  readonly scales = new Float32Array(ROWS_AT_A_TIME);
  /** Columns with an outlier, ascending. */
  outlierColumns = new Int32Array(0);
  outliers = 0;
  /** f16 values `[ROWS_AT_A_TIME, outliers]` of those columns. */
  outlierValues = new Float32Array(0);
  inputs = 0;
  #isOutlier = new Uint8Array(0);

  /** Makes room for layers of so many inputs. */
  reserve(inputs: number): void {
    if (this.#isOutlier.length >= inputs) return;
    this.codes = new Int8Array(ROWS_AT_A_TIME * inputs);
    this.outlierColumns = new Int32Array(inputs);
    this.outlierValues = new Float32Array(ROWS_AT_A_TIME * inputs);
    this.#isOutlier = new Uint8Array(inputs);
  }

  /**
   * Finds the columns of `x` in which any of `rows` rows reaches the threshold; none if it is 0. x: `[rows, inputs]`. What is
   * an outlier thereby depends on all rows that share a call, as it does in bitsandbytes.
   */
  findOutliers(x: Float32Array, rows: number, inputs: number, threshold: number): void {
    this.inputs = inputs;
    this.outliers = 0;
    this.#isOutlier.fill(0, 0, inputs);
    if (threshold === 0) return;
    for (let m = 0; m < rows; m++) {
      for (let i = 0; i < inputs; i++) {
        if (Math.abs(roundToF16(x[m * inputs + i] ?? 0)) >= threshold) this.#isOutlier[i] = 1;
      }
    }
    for (let i = 0; i < inputs; i++) {
      if (this.#isOutlier[i] === 1) this.outlierColumns[this.outliers++] = i;
    }
  }

  /** Sets the scales of `count` rows from row `first` of x on. Elements at the threshold do not count, wherever they stand. */
  findScales(x: Float32Array, first: number, count: number, threshold: number): void {
    const { inputs } = this;
    const limit = threshold === 0 ? Number.POSITIVE_INFINITY : threshold;
    for (let m = 0; m < count; m++) {
      let largest = 0;
      for (let i = (first + m) * inputs; i < (first + m + 1) * inputs; i++) {
        const magnitude = Math.abs(roundToF16(x[i] ?? 0));
        if (magnitude > largest && magnitude < limit) largest = magnitude;
      }
      this.scales[m] = largest;
    }
  }

  /** Quantizes `count` rows from row `first` of x on, by the scales as they stand. A row of zeros has code 0 throughout. */
  quantize(x: Float32Array, first: number, count: number): void {
    const { inputs, codes, outliers, outlierColumns, outlierValues } = this;
    for (let m = 0; m < count; m++) {
      const scale = this.scales[m] ?? 0;
      const factor = scale === 0 ? 0 : fround(127 / scale);
      for (let i = 0; i < inputs; i++) {
        const value = this.#isOutlier[i] === 1 ? 0 : roundToF16(x[(first + m) * inputs + i] ?? 0);
        codes[m * inputs + i] = roundToInteger(fround(value * factor));
      }
      for (let j = 0; j < outliers; j++) {
        outlierValues[m * outliers + j] = roundToF16(x[(first + m) * inputs + (outlierColumns[j] ?? 0)] ?? 0);
      }
    }
  }
}
