/**
 * Activations as LLM.int8 multiplies them (Dettmers et al. 2022): rounded to f16, columns with an outlier kept apart, the
 * rest quantized to 8 bits by row. Memory is sized when layers are made; nothing is allocated here afterwards.
 */
import { roundAllToF16, roundToF16, roundToInteger } from "./rounding.js";

const { fround } = Math;

/** Rows worked on at a time. */
export const ROWS_AT_A_TIME = 16;

/** Bits of an infinite f32, above those of all finite ones. */
const INFINITY_BITS = 0x7f800000;

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
  #inputs = 0;
  #isOutlier = new Uint8Array(0);
  /** f16 values `[ROWS_AT_A_TIME, inputs]` of the rows at hand. */
  #rounded = new Float32Array(0);

  /** Makes room for layers of so many inputs. */
  reserve(inputs: number): void {
    if (this.#isOutlier.length >= inputs) return;
    this.codes = new Int8Array(ROWS_AT_A_TIME * inputs);
    this.outlierColumns = new Int32Array(inputs);
    this.outlierValues = new Float32Array(ROWS_AT_A_TIME * inputs);
    this.#isOutlier = new Uint8Array(inputs);
    this.#rounded = new Float32Array(ROWS_AT_A_TIME * inputs);
  }

  /**
   * Finds the columns of `x` in which any of `rows` rows reaches the threshold; none if it is 0. x: `[rows, inputs]`. What is
   * an outlier thereby depends on all rows that share a call, as it does in bitsandbytes.
   */
  findOutliers(x: Float32Array, rows: number, inputs: number, { least }: OutlierThreshold): void {
    this.#inputs = inputs;
    this.outliers = 0;
    this.#isOutlier.fill(0, 0, inputs);
    for (let m = 0; m < rows; m++) {
      for (let i = 0; i < inputs; i++) {
        if (Math.abs(x[m * inputs + i] ?? 0) >= least) this.#isOutlier[i] = 1;
      }
    }
    for (let i = 0; i < inputs; i++) {
      if (this.#isOutlier[i] === 1) this.outlierColumns[this.outliers++] = i;
    }
  }

  /**
   * Takes `count` rows from row `first` of x on, and sets their scales. Elements that reach the threshold do not count,
   * wherever they stand.
   */
  takeRows(x: Float32Array, first: number, count: number, { least }: OutlierThreshold): void {
    const inputs = this.#inputs;
    const rounded = this.#rounded;
    for (let i = 0; i < count * inputs; i++) rounded[i] = x[first * inputs + i] ?? 0;
    roundAllToF16(rounded, 0, count * inputs);
    for (let m = 0; m < count; m++) {
      let largest = 0;
      for (let i = m * inputs; i < (m + 1) * inputs; i++) {
        const magnitude = Math.abs(rounded[i] ?? 0);
        if (magnitude > largest && magnitude < least) largest = magnitude;
      }
      this.scales[m] = largest;
    }
  }

  /** Quantizes the rows that were taken, by the scales as they stand. A row of zeros has code 0 throughout. */
  quantize(count: number): void {
    const { codes, outliers, outlierColumns, outlierValues } = this;
    const inputs = this.#inputs;
    const rounded = this.#rounded;
    for (let m = 0; m < count; m++) {
      const scale = this.scales[m] ?? 0;
      const factor = scale === 0 ? 0 : fround(127 / scale);
      for (let j = 0; j < outliers; j++) {
        const at = m * inputs + (outlierColumns[j] ?? 0);
        outlierValues[m * outliers + j] = rounded[at] ?? 0;
        rounded[at] = 0;
      }
      for (let i = m * inputs; i < (m + 1) * inputs; i++) {
        codes[i] = roundToInteger(fround((rounded[i] ?? 0) * factor));
      }
    }
  }
}

/** From which magnitude on an activation is an outlier. */
export interface OutlierThreshold {
  /** The least f32 whose f16 reaches the threshold; infinity for none. */
  readonly least: number;
}

/** `llm_int8_threshold`, which f16 values are held against, for f32 values; 0 means that there are no outliers. */
export function outlierThreshold(threshold: number): OutlierThreshold {
  if (threshold === 0) return { least: Number.POSITIVE_INFINITY };
  // Positive f32 are ordered as their bits are: halve until the least one is found.
  const value = new Float32Array(1);
  const bits = new Uint32Array(value.buffer);
  let low = 0;
  let high = INFINITY_BITS;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    bits[0] = middle;
    if (roundToF16(value[0] ?? 0) >= threshold) high = middle;
    else low = middle + 1;
  }
  bits[0] = low;
  return { least: value[0] ?? 0 };
}
