/**
 * What ranks exchange so that a row-parallel int8 layer is exact: every number is the one that a single rank with the whole
 * matrix would have. Buffers and requests are made once.
 */
import {
  type AllGather,
  type AllReduce,
  type Broadcast,
  type DType,
  f32Of,
  type LoadedWeights,
  type Operand,
} from "shardloom/plugin";
import { ROWS_AT_A_TIME } from "./activation-rows.js";

/** Sums of codes travel as two f32, `high * SPLIT + low`: over 64 ranks both stay below 2^24, so f32 sums are exact. */
export const SPLIT = 65_536;

/** Columns of one rank: the scales of its rows, then its number of outlier columns. */
const SCALES_WIDTH = ROWS_AT_A_TIME + 1;

/** Memory of the exchange, which layers of equally many outputs share. */
export class ReductionBuffers {
  readonly ownScales: Operand;
  readonly allScales: Operand;
  /** f32 `[ROWS_AT_A_TIME, outputs]` pairs of high and low. */
  readonly sums: Operand;
  /** i32 `[ROWS_AT_A_TIME, outputs]` pairs: the bits of f64. */
  readonly outlierSums: Operand;

  constructor(outputs: number, worldSize: number, { kernels, allocate }: LoadedWeights) {
    const make = (name: string, dtype: DType, shape: readonly number[]): Operand => {
      return kernels.bind(allocate(`int8.${name}`, dtype, shape));
    };
    this.ownScales = make("ownScales", "f32", [1, SCALES_WIDTH]);
    this.allScales = make("allScales", "f32", [1, SCALES_WIDTH * worldSize]);
    this.sums = make("sums", "f32", [ROWS_AT_A_TIME, 2 * outputs]);
    this.outlierSums = make("outlierSums", "i32", [ROWS_AT_A_TIME, 2 * outputs]);
  }
}

/** The requests of one layer, and views of what they move. */
export class Reduction {
  readonly gatherScales: AllGather;
  readonly ownScales: Float32Array;
  readonly allScales: Float32Array;
  readonly reduceSums: AllReduce;
  readonly sums: Float32Array;
  /** By root: hands a rank's sums of outlier products on to the others. */
  readonly handOn: readonly Broadcast[];
  readonly outlierSums: Float64Array;

  constructor({ ownScales, allScales, sums, outlierSums }: ReductionBuffers, worldSize: number, site: string) {
    const ranks = Array.from({ length: worldSize }, (_, rank) => rank);
    const widths = ranks.map(() => SCALES_WIDTH);
    this.gatherScales = { kind: "allGather", site, data: ownScales, out: allScales, widths, rows: 1 };
    this.ownScales = f32Of(ownScales.tensor);
    this.allScales = f32Of(allScales.tensor);
    this.reduceSums = { kind: "allReduce", site, data: sums, count: 0 };
    this.sums = f32Of(sums.tensor);
    this.handOn = ranks.map((root) => ({ kind: "broadcast", site, data: outlierSums, root, count: 0 }));
    const { arena, byteOffset } = outlierSums.tensor;
    this.outlierSums = new Float64Array(arena.buffer, byteOffset, (outlierSums.rows * outlierSums.columns) / 2);
  }

  /** Fills `scales` with the largest of all ranks, after the gather, and returns the outlier columns of all. */
  mergeScales(scales: Float32Array): number {
    let outliers = 0;
    scales.fill(0);
    for (let start = 0; start < this.allScales.length; start += SCALES_WIDTH) {
      for (let m = 0; m < ROWS_AT_A_TIME; m++) {
        scales[m] = Math.max(scales[m] ?? 0, this.allScales[start + m] ?? 0);
      }
      outliers += this.allScales[start + ROWS_AT_A_TIME] ?? 0;
    }
    return outliers;
  }
}
