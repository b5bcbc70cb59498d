/**
 * Kernels in plain TypeScript: slow, readable, and what every native kernel is tested against. Sums accumulate in f64
 * and are rounded to f32 once, when they are stored.
 */
import type { Operand } from "../core/operand.js";
import type { Tensor } from "../core/tensor.js";
import type { ActivationLevel, Activations } from "./activation-levels.js";
import { type RowReader, rowReader, weightExtents } from "./execution-format.js";
import type { AttentionBatch, AttentionShape, Kernels, KvCache, LinearWeight } from "./kernels.js";
import { attention, writeKv } from "./reference-attention.js";
import { expect, expectColumns, expectElements, expectRows, indexBelow } from "./reference-checks.js";
import { roundedLinear } from "./reference-levels.js";
import { OperandTable } from "./reference-operands.js";

/** Kernels that run everywhere. With activations "auto" they multiply in f32. */
export function createReferenceKernels(activations: Activations = "f32"): Kernels {
  return new ReferenceKernels(activations === "auto" ? "f32" : activations);
}

class ReferenceKernels implements Kernels {
  readonly backend = "reference";
  readonly isa = "typescript";
  readonly #table = new OperandTable();
  readonly #readers = new WeakMap<LinearWeight, RowReader>();
  readonly #level: ActivationLevel;
  readonly #prepared = new WeakSet<LinearWeight>();

  constructor(level: ActivationLevel) {
    this.#level = level;
  }

  bind(tensor: Tensor): Operand {
    return this.#table.bind(tensor);
  }

  release(operand: Operand): void {
    this.#table.release(operand);
  }

  takesRowGroups(): boolean {
    return false;
  }

  /** Remembers the weight: only prepared ones are multiplied with at another level than f32. */
  prepareLinear(weight: LinearWeight): LinearWeight {
    this.#prepared.add(weight);
    return weight;
  }

  releaseLinear(weight: LinearWeight): void {
    this.#prepared.delete(weight);
  }

  embedding(out: Operand, ids: Operand, table: LinearWeight, rows: number, firstId: number): void {
    const { outputs: idCount, inputs } = weightExtents(table);
    expectRows(out, rows);
    expectElements(ids, rows);
    expectColumns(out, inputs);
    const [outputs, idOf, read] = [this.#table.floats(out), this.#table.integers(ids), this.#rowsOf(table)];
    for (let m = 0; m < rows; m++) {
      const row = outputs.subarray(m * inputs, (m + 1) * inputs);
      const index = (idOf[m] ?? -1) - firstId;
      if (index >= 0 && index < idCount) read(index, row);
      else row.fill(0);
    }
  }

  gatherRows(out: Operand, source: Operand, indices: Operand, first: number, rows: number): void {
    expectRows(out, rows);
    expectColumns(source, out.columns);
    expectElements(indices, first + rows);
    expect(source.tensor.dtype === out.tensor.dtype, `rows of ${out.tensor.dtype}`, source.tensor.dtype);
    const [to, from, rowOf] = [this.#table.bytes(out), this.#table.bytes(source), this.#table.integers(indices)];
    const rowBytes = out.rows === 0 ? 0 : to.byteLength / out.rows;
    for (let i = 0; i < rows; i++) {
      const row = indexBelow(rowOf, first + i, source.rows, "indices");
      to.set(from.subarray(row * rowBytes, (row + 1) * rowBytes), i * rowBytes);
    }
  }

  rmsNorm(out: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    const width = out.columns;
    expectRows(out, rows);
    expectRows(x, rows);
    expectColumns(x, width);
    expect(weight.rows * weight.columns === width, `a weight of ${width} elements`, weight.rows * weight.columns);
    const [outputs, inputs, scales] = [this.#table.floats(out), this.#table.floats(x), this.#table.floats(weight)];
    for (let m = 0; m < rows; m++) {
      const row = inputs.subarray(m * width, (m + 1) * width);
      const squares = row.reduce((sum, value) => sum + value * value, 0);
      const factor = 1 / Math.sqrt(squares / width + epsilon);
      for (let i = 0; i < width; i++) outputs[m * width + i] = (row[i] ?? 0) * factor * (scales[i] ?? 0);
    }
  }

  addRmsNorm(out: Operand, residual: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    expectRows(residual, rows);
    expectRows(x, rows);
    expectColumns(x, residual.columns);
    const [sums, inputs] = [this.#table.floats(residual), this.#table.floats(x)];
    for (let i = 0; i < rows * x.columns; i++) sums[i] = (sums[i] ?? 0) + (inputs[i] ?? 0);
    this.rmsNorm(out, residual, weight, rows, epsilon);
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
    expectRows(x, rows);
    expectElements(weight, headSize);
    expect(
      firstColumn + heads * headSize <= x.columns,
      `heads in ${x.columns} columns`,
      firstColumn + heads * headSize,
    );
    const [values, scales] = [this.#table.floats(x), this.#table.floats(weight)];
    for (let m = 0; m < rows; m++) {
      for (let h = 0; h < heads; h++) {
        const start = m * x.columns + firstColumn + h * headSize;
        const head = values.subarray(start, start + headSize);
        const squares = head.reduce((sum, value) => sum + value * value, 0);
        const factor = 1 / Math.sqrt(squares / headSize + epsilon);
        for (let i = 0; i < headSize; i++) head[i] = (head[i] ?? 0) * factor * (scales[i] ?? 0);
      }
    }
  }

  linear(out: Operand, x: Operand, weight: LinearWeight, bias: Operand | null, rows: number, firstColumn = 0): void {
    const { outputs: count, inputs } = weightExtents(weight);
    expectRows(out, rows);
    expectRows(x, rows);
    expectColumns(x, inputs);
    expect(firstColumn >= 0 && firstColumn + count <= out.columns, `${out.columns} columns`, firstColumn + count);
    if (bias !== null) expectElements(bias, out.columns);
    const [outputs, activations, read] = [this.#table.floats(out), this.#table.floats(x), this.#rowsOf(weight)];
    const biases = bias === null ? null : this.#table.floats(bias);
    const level = this.#prepared.has(weight) ? this.#level : "f32";
    const rounded = level === "f32" ? null : roundedLinear(weight, level);
    if (rounded !== null) {
      const target = { values: outputs, stride: out.columns, firstColumn };
      rounded(target, activations, biases, rows);
      return;
    }
    const row = new Float32Array(inputs);
    for (let n = 0; n < count; n++) {
      read(n, row);
      for (let m = 0; m < rows; m++) {
        let sum = 0;
        for (let k = 0; k < inputs; k++) sum += (activations[m * inputs + k] ?? 0) * (row[k] ?? 0);
        const column = firstColumn + n;
        outputs[m * out.columns + column] = biases === null ? sum : sum + (biases[column] ?? 0);
      }
    }
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
    expectRows(x, rows);
    expectElements(positions, rows);
    expectColumns(cosSin, headSize);
    expect(headSize % 2 === 0, "an even head size", headSize);
    expect(
      firstColumn + heads * headSize <= x.columns,
      `heads in ${x.columns} columns`,
      firstColumn + heads * headSize,
    );
    const [values, positionOf, angles] = [
      this.#table.floats(x),
      this.#table.integers(positions),
      this.#table.floats(cosSin),
    ];
    const half = headSize / 2;
    for (let m = 0; m < rows; m++) {
      const row = indexBelow(positionOf, m, cosSin.rows, "positions") * headSize;
      for (let h = 0; h < heads; h++) {
        const head = m * x.columns + firstColumn + h * headSize;
        for (let i = 0; i < half; i++) {
          const [a, b] = [values[head + i] ?? 0, values[head + half + i] ?? 0];
          const [cosine, sine] = [angles[row + i] ?? 0, angles[row + half + i] ?? 0];
          values[head + i] = a * cosine - b * sine;
          values[head + half + i] = b * cosine + a * sine;
        }
      }
    }
  }

  writeKv(cache: KvCache, source: Operand, slots: Operand, rows: number, keyColumn: number, valueColumn: number): void {
    writeKv(this.#table, cache, source, slots, rows, keyColumn, valueColumn);
  }

  attention(
    out: Operand,
    q: Operand,
    cache: KvCache,
    batch: AttentionBatch,
    sequences: number,
    shape: AttentionShape,
  ): void {
    attention(this.#table, out, q, cache, batch, sequences, shape);
  }

  siluMul(out: Operand, gateUp: Operand, rows: number): void {
    const width = out.columns;
    expectRows(out, rows);
    expectRows(gateUp, rows);
    expectColumns(gateUp, 2 * width);
    const [outputs, inputs] = [this.#table.floats(out), this.#table.floats(gateUp)];
    for (let m = 0; m < rows; m++) {
      for (let i = 0; i < width; i++) {
        const gate = inputs[2 * m * width + i] ?? 0;
        const up = inputs[(2 * m + 1) * width + i] ?? 0;
        outputs[m * width + i] = (gate / (1 + Math.exp(-gate))) * up;
      }
    }
  }

  argmax(values: Operand, ids: Operand, logits: Operand, rows: number, columns: number, firstId: number): void {
    expectElements(values, rows);
    expectElements(ids, rows);
    expectRows(logits, rows);
    expect(columns <= logits.columns, `at most ${logits.columns} columns`, columns);
    const [best, idOf, from] = [this.#table.floats(values), this.#table.integers(ids), this.#table.floats(logits)];
    for (let m = 0; m < rows; m++) {
      let largest = Number.NEGATIVE_INFINITY;
      let column = -1;
      for (let i = 0; i < columns; i++) {
        const value = from[m * logits.columns + i] ?? Number.NaN;
        // The second comparison lets a first -Infinity count.
        if (value > largest || (column < 0 && value === largest)) {
          largest = value;
          column = i;
        } else if (Number.isNaN(value)) {
          largest = value;
          column = 0;
          break;
        }
      }
      best[m] = largest;
      idOf[m] = firstId + Math.max(0, column);
    }
  }

  /** A reader of the weight's rows, made once; its operands must be bound. */
  #rowsOf(weight: LinearWeight): RowReader {
    const stored = weight.format === "prepared" ? weight.source : weight;
    const operands = stored.format === "dense" ? [stored.matrix] : [stored.codes, stored.scales];
    for (const operand of operands) this.#table.bytes(operand);
    let reader = this.#readers.get(weight);
    if (reader === undefined) {
      reader = rowReader(weight);
      this.#readers.set(weight, reader);
    }
    return reader;
  }
}
