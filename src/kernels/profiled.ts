/** Kernels that record how long every call takes and what it moves. Only where profiling is asked for; others pay nothing. */
import { VirtualAllocator } from "../core/arena.js";
import { dtypeBytes } from "../core/dtype.js";
import type { Operand } from "../core/operand.js";
import type { Moved, StepRecorder } from "../core/step-recorder.js";
import { i32Of, type Tensor } from "../core/tensor.js";
import type {
  AttentionBatch,
  AttentionShape,
  BlocksOfCodes,
  Kernels,
  KvCache,
  LinearWeight,
  Recorded,
} from "./kernels.js";
import { createShapeOnlyKernels } from "./shape-only.js";
import { layerNameOf, weightBytes, weightOutputs } from "./weight-account.js";

const F32 = 4;
const CALIBRATION = "calibration";

/**
 * The same kernels, whose calls `recorder` gets to know: each under its name, those that multiply with weights also under
 * that of their layer. Measures what recording costs.
 */
export function profiledKernels(kernels: Kernels, recorder: StepRecorder): Kernels {
  calibrate(recorder);
  return new ProfiledKernels(kernels, recorder);
}

function calibrate(recorder: StepRecorder): void {
  const idle = new ProfiledKernels(createShapeOnlyKernels(), recorder);
  const operand = idle.bind(new VirtualAllocator(CALIBRATION).allocate(CALIBRATION, "f32", [1, 1]));
  const weight = { format: "dense", matrix: operand } as const;
  recorder.calibrate(recorder.row(`linear.${CALIBRATION}`), () => idle.linear(operand, operand, weight, null, 1));
}

/** What is known of a weight once it has been used. */
interface WeightAccount {
  readonly row: number;
  readonly bytes: number;
  readonly outputs: number;
}

class ProfiledKernels implements Kernels {
  readonly record?: NonNullable<Kernels["record"]>;
  readonly backend: Kernels["backend"];
  readonly isa: string;
  readonly #kernels: Kernels;
  readonly #recorder: StepRecorder;
  readonly #rows;
  readonly #weights = new Map<LinearWeight, WeightAccount>();
  readonly #batches = new Map<AttentionBatch, BatchViews>();

  constructor(kernels: Kernels, recorder: StepRecorder) {
    this.backend = kernels.backend;
    this.isa = kernels.isa;
    this.#kernels = kernels;
    this.#recorder = recorder;
    this.#rows = {
      embedding: recorder.row("embedding"),
      gatherRows: recorder.row("gatherRows"),
      rmsNorm: recorder.row("rmsNorm"),
      addRmsNorm: recorder.row("addRmsNorm"),
      headNorm: recorder.row("headNorm"),
      rope: recorder.row("rope"),
      writeKv: recorder.row("writeKv"),
      attention: recorder.row("attention"),
      siluMul: recorder.row("siluMul"),
      argmax: recorder.row("argmax"),
    } as const;
    const record = kernels.record?.bind(kernels);
    if (record !== undefined) this.record = (make) => this.#record(record, make);
  }

  bind(tensor: Tensor): Operand {
    return this.#kernels.bind(tensor);
  }

  release(operand: Operand): void {
    this.#kernels.release(operand);
  }

  takesRowGroups(weight: BlocksOfCodes): boolean {
    return this.#kernels.takesRowGroups(weight);
  }

  prepareLinear(weight: LinearWeight): LinearWeight {
    return this.#kernels.prepareLinear(weight);
  }

  releaseLinear(weight: LinearWeight): void {
    this.#kernels.releaseLinear(weight);
  }

  embedding(out: Operand, ids: Operand, table: LinearWeight, rows: number, firstId: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.embedding(out, ids, table, rows, firstId);
    this.#done(this.#rows.embedding, start, rows * (2 * F32 * out.columns + F32), 0);
  }

  gatherRows(out: Operand, source: Operand, indices: Operand, first: number, rows: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.gatherRows(out, source, indices, first, rows);
    const bytes = rows * out.columns * 2 * dtypeBytes(out.tensor.dtype);
    this.#done(this.#rows.gatherRows, start, bytes, 0);
  }

  rmsNorm(out: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.rmsNorm(out, x, weight, rows, epsilon);
    const elements = rows * out.columns;
    this.#done(this.#rows.rmsNorm, start, F32 * (2 * elements + out.columns), 4 * elements);
  }

  addRmsNorm(out: Operand, residual: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.addRmsNorm(out, residual, x, weight, rows, epsilon);
    const elements = rows * out.columns;
    this.#done(this.#rows.addRmsNorm, start, F32 * (4 * elements + out.columns), 5 * elements);
  }

  headNorm(
    x: Operand,
    weight: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
    epsilon: number,
  ): void {
    const start = this.#recorder.nowUs();
    this.#kernels.headNorm(x, weight, rows, firstColumn, heads, headSize, epsilon);
    const elements = rows * heads * headSize;
    this.#done(this.#rows.headNorm, start, F32 * (2 * elements + headSize), 4 * elements);
  }

  linear(out: Operand, x: Operand, weight: LinearWeight, bias: Operand | null, rows: number, firstColumn = 0): void {
    const start = this.#recorder.nowUs();
    this.#kernels.linear(out, x, weight, bias, rows, firstColumn);
    const { row, bytes, outputs } = this.#accountOf(weight);
    const moved = bytes + F32 * rows * (x.columns + outputs);
    this.#done(row, start, moved, 2 * rows * x.columns * outputs);
  }

  rope(
    x: Operand,
    positions: Operand,
    cosSin: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
  ): void {
    const start = this.#recorder.nowUs();
    this.#kernels.rope(x, positions, cosSin, rows, firstColumn, heads, headSize);
    const elements = rows * heads * headSize;
    this.#done(this.#rows.rope, start, F32 * (2 * elements + rows * headSize), 3 * elements);
  }

  writeKv(cache: KvCache, source: Operand, slots: Operand, rows: number, keyColumn: number, valueColumn: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.writeKv(cache, source, slots, rows, keyColumn, valueColumn);
    const sourceBytes = F32 * 2 * rows * cache.kvHeads * cache.headSize;
    this.#done(this.#rows.writeKv, start, sourceBytes + rows * positionBytes(cache), 0);
  }

  attention(
    out: Operand,
    q: Operand,
    cache: KvCache,
    batch: AttentionBatch,
    sequences: number,
    shape: AttentionShape,
  ): void {
    const start = this.#recorder.nowUs();
    this.#kernels.attention(out, q, cache, batch, sequences, shape);
    const views = this.#viewsOf(batch);
    const { attention: row } = this.#rows;
    const { bytes, flops } = attentionMoves(views, sequences, cache, shape);
    this.#recorder.record(row, start, bytes, flops);
    // Contexts grow from step to step.
    if (this.#recorder.notes) {
      this.#recorder.note({ row, moved: () => attentionMoves(views, sequences, cache, shape) });
    }
  }

  siluMul(out: Operand, gateUp: Operand, rows: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.siluMul(out, gateUp, rows);
    const elements = rows * out.columns;
    this.#done(this.#rows.siluMul, start, F32 * 3 * elements, 5 * elements);
  }

  argmax(values: Operand, ids: Operand, logits: Operand, rows: number, columns: number, firstId: number): void {
    const start = this.#recorder.nowUs();
    this.#kernels.argmax(values, ids, logits, rows, columns, firstId);
    this.#done(this.#rows.argmax, start, F32 * rows * columns, 0);
  }

  /** A call that began at `startUs` has just ended; it moves and does as much whenever it is made. */
  #done(row: number, startUs: number, bytes: number, flops: number): void {
    this.#recorder.record(row, startUs, bytes, flops);
    if (!this.#recorder.notes) return;
    const moved = { bytes, flops };
    this.#recorder.note({ row, moved: () => moved });
  }

  #record<Result>(record: NonNullable<Kernels["record"]>, make: () => Result): Recorded<Result> {
    const recorder = this.#recorder;
    const { result: recorded, calls } = recorder.noting(() => record(make));
    const micros = new Float64Array(2 * calls.length);
    return {
      result: recorded.result,
      replay: () => {
        const outcome = recorded.replay(micros);
        recorder.countAgain(calls, micros);
        return outcome;
      },
      release: recorded.release,
    };
  }

  #accountOf(weight: LinearWeight): WeightAccount {
    const known = this.#weights.get(weight);
    if (known !== undefined) return known;
    const row = this.#recorder.row(`linear.${layerNameOf(weight)}`);
    const account = { row, bytes: weightBytes(weight), outputs: weightOutputs(weight) };
    this.#weights.set(weight, account);
    return account;
  }

  #viewsOf(batch: AttentionBatch): BatchViews {
    const known = this.#batches.get(batch);
    if (known !== undefined) return known;
    const views = { starts: i32Of(batch.queryStarts.tensor), contexts: i32Of(batch.contextLengths.tensor) };
    this.#batches.set(batch, views);
    return views;
  }
}

/** Bytes of the keys and values of one position, scales included. */
function positionBytes({ keys, scales, kvHeads, headSize }: KvCache): number {
  return 2 * kvHeads * (headSize * dtypeBytes(keys.tensor.dtype) + (scales === null ? 0 : F32));
}

interface BatchViews {
  readonly starts: Int32Array;
  readonly contexts: Int32Array;
}

/** Written by `attentionMoves`, so that recording allocates nothing. */
const attended: Moved = { bytes: 0, flops: 0 };

/** A call reads a position of the cache once for all queries of its sequence, and computes with it for each that sees it. */
function attentionMoves(
  { starts, contexts }: BatchViews,
  sequences: number,
  cache: KvCache,
  { heads, headSize, slidingWindow: window }: AttentionShape,
): Moved {
  let [byAll, byEach] = [0, 0];
  for (let sequence = 0; sequence < sequences; sequence++) {
    const context = contexts[sequence] ?? 0;
    const queries = (starts[sequence + 1] ?? 0) - (starts[sequence] ?? 0);
    byAll += window > 0 ? Math.min(context, window + queries - 1) : context;
    for (let query = 0; query < queries; query++) {
      const seen = context - queries + query + 1;
      byEach += window > 0 ? Math.min(seen, window) : seen;
    }
  }
  attended.bytes = byAll * positionBytes(cache);
  attended.flops = 4 * byEach * heads * headSize;
  return attended;
}
