/**
 * The arithmetic of LLM.int8 with quantized activations, as an option: for those who want what bitsandbytes computes rather
 * than what its weights say. In plain TypeScript; slower than the kernels, which multiply dequantized weights.
 */
import {
  bytesOf,
  f32Of,
  InternalError,
  type Kernels,
  type LinearLayer,
  type LinearWeight,
  type LoadedWeights,
  type Operand,
  type Pass,
} from "shardloom/plugin";
import { type ActivationRows, type OutlierThreshold, outlierThreshold, ROWS_AT_A_TIME } from "./activation-rows.js";
import { addOutliers, addToOutput, type Int8Matrix, scaleSum, sumOfCodes } from "./int8-product.js";
import { Reduction, SPLIT } from "./int8-reduction.js";
import { QuantizedLinearMethod } from "./linear-method.js";
import type { RankResources } from "./rank-resources.js";
import type { Segment } from "./segments.js";

/** f32 elements of operands. A step meets the same few operands each time, so they are looked up, not made. */
const views = new WeakMap<Operand, Float32Array>();

function floatsOf(operand: Operand): Float32Array {
  let view = views.get(operand);
  if (view === undefined) {
    view = f32Of(operand.tensor);
    views.set(operand, view);
  }
  return view;
}

const NO_BIAS = new Float32Array(0);

export class Int8ActivationMethod extends QuantizedLinearMethod {
  /** It multiplies by itself. */
  override readonly recordable = false;
  readonly #threshold: OutlierThreshold;
  readonly #matrices = new Map<LinearWeight, Int8Matrix>();
  #reduction: Reduction | null = null;
  #rank = 0;

  constructor(segments: readonly Segment[], resources: RankResources, threshold: number) {
    super(segments, resources);
    this.#threshold = outlierThreshold(threshold);
  }

  override processWeightsAfterLoading(weights: LoadedWeights, layer: LinearLayer): void {
    super.processWeightsAfterLoading(weights, layer);
    for (const { weight } of this.executionWeights()) {
      if (weight.format === "int8") this.#matrices.set(weight, matrixOf(weight.codes, weight.scales));
    }
    this.resources.activations.reserve(layer.inputs.end - layer.inputs.start);
    const { kind, rank, worldSize, prefix } = layer;
    this.#rank = rank;
    if (kind !== "row" || worldSize === 1) return;
    const buffers = this.resources.reductionBuffers(layer.outputSizePerPartition, worldSize, weights);
    this.#reduction = new Reduction(buffers, worldSize, prefix);
  }

  /** int8 codes stay in the order of their rows, in which they are multiplied with here. */
  protected override prepare(kernels: Kernels, weight: LinearWeight): LinearWeight {
    return weight.format === "int8" ? weight : super.prepare(kernels, weight);
  }

  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    for (const { firstRow, weight } of this.executionWeights()) {
      const matrix = this.#matrices.get(weight);
      if (matrix === undefined) kernels.linear(out, x, weight, bias, rows, firstRow);
      else this.#multiply(matrix, out, x, bias, rows, firstRow);
    }
  }

  #multiply(matrix: Int8Matrix, out: Operand, x: Operand, bias: Operand | null, rows: number, firstRow: number): void {
    const { activations } = this.resources;
    const values = floatsOf(x);
    const outputs = floatsOf(out);
    const biases = bias === null ? NO_BIAS : floatsOf(bias);
    activations.findOutliers(values, rows, matrix.inputs, this.#threshold);
    for (let first = 0; first < rows; first += ROWS_AT_A_TIME) {
      const count = Math.min(ROWS_AT_A_TIME, rows - first);
      activations.takeRows(values, first, count, this.#threshold);
      activations.quantize(count);
      for (let n = 0; n < matrix.outputs; n++) {
        const scale = matrix.scales[n] ?? 0;
        const column = firstRow + n;
        for (let m = 0; m < count; m++) {
          const sum = sumOfCodes(activations, m, matrix, n);
          const output = scaleSum(sum, activations.scales[m] ?? 0, scale, biases[column] ?? 0);
          const at = (first + m) * out.columns + column;
          outputs[at] =
            activations.outliers === 0 ? output : addToOutput(output, addOutliers(0, activations, m, matrix, n));
        }
      }
    }
  }

  /**
   * Row-parallel, exact: rows are scaled by their largest magnitude on any rank, whole-number sums are added without
   * loss, and sums of outlier products pass from rank to rank in the order of columns.
   */
  *applyReduced(_kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): Pass {
    const [only] = this.executionWeights();
    const matrix = only === undefined ? undefined : this.#matrices.get(only.weight);
    const reduction = this.#reduction;
    if (matrix === undefined || reduction === null)
      throw new InternalError("a row-parallel int8 layer was not processed");
    const { activations } = this.resources;
    const values = floatsOf(x);
    activations.findOutliers(values, rows, matrix.inputs, this.#threshold);
    for (let first = 0; first < rows; first += ROWS_AT_A_TIME) {
      const count = Math.min(ROWS_AT_A_TIME, rows - first);
      activations.takeRows(values, first, count, this.#threshold);
      reduction.ownScales.set(activations.scales);
      reduction.ownScales[ROWS_AT_A_TIME] = activations.outliers;
      yield reduction.gatherScales;
      const outliers = reduction.mergeScales(activations.scales);
      activations.quantize(count);
      sumCodes(activations, matrix, reduction.sums, count);
      reduction.reduceSums.count = 2 * count * matrix.outputs;
      yield reduction.reduceSums;
      if (outliers > 0) yield* this.#sumOutliers(activations, matrix, reduction, count);
      writeOutputs(activations, matrix, reduction, out, bias, first, count, outliers > 0);
    }
  }

  *#sumOutliers(activations: ActivationRows, matrix: Int8Matrix, reduction: Reduction, count: number): Pass {
    const { outlierSums } = reduction;
    outlierSums.fill(0);
    for (const request of reduction.handOn) {
      if (request.root === this.#rank) {
        for (let m = 0; m < count; m++) {
          for (let n = 0; n < matrix.outputs; n++) {
            const at = m * matrix.outputs + n;
            outlierSums[at] = addOutliers(outlierSums[at] ?? 0, activations, m, matrix, n);
          }
        }
      }
      request.count = 2 * count * matrix.outputs;
      yield request;
    }
  }
}

function matrixOf(codes: Operand, scales: Operand): Int8Matrix {
  const bytes = bytesOf(codes.tensor);
  return {
    codes: new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length),
    scales: f32Of(scales.tensor),
    outputs: codes.rows,
    inputs: codes.columns,
  };
}

function sumCodes(activations: ActivationRows, matrix: Int8Matrix, sums: Float32Array, count: number): void {
  for (let m = 0; m < count; m++) {
    for (let n = 0; n < matrix.outputs; n++) {
      const sum = sumOfCodes(activations, m, matrix, n);
      const high = Math.floor(sum / SPLIT);
      const at = 2 * (m * matrix.outputs + n);
      sums[at] = high;
      sums[at + 1] = sum - high * SPLIT;
    }
  }
}

function writeOutputs(
  { scales }: ActivationRows,
  matrix: Int8Matrix,
  { sums, outlierSums }: Reduction,
  out: Operand,
  bias: Operand | null,
  first: number,
  count: number,
  hasOutliers: boolean,
): void {
  const outputs = floatsOf(out);
  const biases = bias === null ? NO_BIAS : floatsOf(bias);
  for (let m = 0; m < count; m++) {
    for (let n = 0; n < matrix.outputs; n++) {
      const at = m * matrix.outputs + n;
      const sum = (sums[2 * at] ?? 0) * SPLIT + (sums[2 * at + 1] ?? 0);
      const output = scaleSum(sum, scales[m] ?? 0, matrix.scales[n] ?? 0, biases[n] ?? 0);
      outputs[(first + m) * out.columns + n] = hasOutliers ? addToOutput(output, outlierSums[at] ?? 0) : output;
    }
  }
}
