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

export class Reduction {
  /** Each rank's row scales, then its number of outlier columns. */
  readonly gatherScales: AllGather;
  readonly ownScales: Float32Array;
  readonly allScales: Float32Array;
  /** `[ROWS_AT_A_TIME, outputs]` pairs of high and low. */
  readonly reduceSums: AllReduce;
  readonly sums: Float32Array;
  /** By root: hands a rank's sums of outlier products on to the others. */
  readonly handOn: readonly Broadcast[];
  /** f64 `[ROWS_AT_A_TIME, outputs]`, over the memory of the broadcasts. */
  readonly outlierSums: Float64Array;

  constructor(outputs: number, worldSize: number, { kernels, allocate }: LoadedWeights) {
    const make = (name: string, dtype: DType, shape: readonly number[]): Operand => {
      return kernels.bind(allocate(`int8.${name}`, dtype, shape));
    };
    const width = ROWS_AT_A_TIME + 1;
    const own = make("ownScales", "f32", [1, width]);
    const all = make("allScales", "f32", [1, width * worldSize]);
    const sums = make("sums", "f32", [ROWS_AT_A_TIME, 2 * outputs]);
    const outliers = make("outlierSums", "i32", [ROWS_AT_A_TIME, 2 * outputs]);
    const ranks = Array.from({ length: worldSize }, (_, rank) => rank);
    this.gatherScales = { kind: "allGather", data: own, out: all, widths: ranks.map(() => width), rows: 1 };
    this.ownScales = f32Of(own.tensor);
    this.allScales = f32Of(all.tensor);
    this.reduceSums = { kind: "allReduce", data: sums, count: 0 };
    this.sums = f32Of(sums.tensor);
    this.handOn = ranks.map((root) => ({ kind: "broadcast", data: outliers, root, count: 0 }));
    const { arena, byteOffset } = outliers.tensor;
    this.outlierSums = new Float64Array(arena.buffer, byteOffset, ROWS_AT_A_TIME * outputs);
  }

  /** Fills `scales` with the largest of all ranks, after the gather, and returns the outlier columns of all. */
  mergeScales(scales: Float32Array): number {
    const width = ROWS_AT_A_TIME + 1;
    let outliers = 0;
    scales.fill(0);
    for (let start = 0; start < this.allScales.length; start += width) {
      for (let m = 0; m < ROWS_AT_A_TIME; m++) {
        scales[m] = Math.max(scales[m] ?? 0, this.allScales[start + m] ?? 0);
      }
      outliers += this.allScales[start + ROWS_AT_A_TIME] ?? 0;
    }
    return outliers;
  }
}
