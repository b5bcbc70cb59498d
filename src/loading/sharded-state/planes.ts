/** What a piece's tensors become where a rank takes them in finer blocks, or as the values that they stand for. */
import type { CheckpointTensor } from "../../checkpoint/checkpoint.js";
import { readSlice, type SliceRange } from "../../checkpoint/slice.js";
import { Arena } from "../../core/arena.js";
import { type DType, dtypeBytes } from "../../core/dtype.js";
import type { Operand } from "../../core/operand.js";
import { bytesOf, elementCount, f32Of, type Tensor } from "../../core/tensor.js";
import { rowReader } from "../../kernels/execution-format.js";
import type { LinearWeight } from "../../kernels/kernels.js";
import type { PieceStorage } from "./manifest.js";

/** Rows dequantized at a time. */
const ROWS_AT_A_TIME = 64;

/** `[rows, blocks]` scales with each repeated `factor` times along its row: the same scales for finer blocks. */
export function repeatedScales(scales: CheckpointTensor, factor: number): CheckpointTensor {
  if (factor === 1) return scales;
  const [rows = 0, blocks = 0] = scales.shape;
  const shape = [rows, blocks * factor];
  const width = dtypeBytes(scales.dtype);
  const fill = ([row, column]: readonly SliceRange[], destination: Uint8Array): void => {
    if (row === undefined || column === undefined) return;
    const first = Math.floor(column.start / factor);
    const end = Math.ceil(column.end / factor);
    const coarse = new Uint8Array((row.end - row.start) * (end - first) * width);
    readSlice(scales, [row, { start: first, end }], coarse);
    let at = 0;
    for (let r = 0; r < row.end - row.start; r++) {
      for (let c = column.start; c < column.end; c++, at += width) {
        const from = (r * (end - first) + Math.floor(c / factor) - first) * width;
        for (let i = 0; i < width; i++) destination[at + i] = coarse[from + i] ?? 0;
      }
    }
  };
  return computedTensor({ name: scales.name, dtype: scales.dtype, shape, file: scales.file }, fill);
}

/** The planes of a piece, by what they hold. */
export interface PiecePlanes {
  readonly codes: CheckpointTensor;
  readonly scales: CheckpointTensor;
  readonly minimums: CheckpointTensor | null;
}

/** `[rows, columns]` f32: the values that codes stand for, bit for bit as execution formats define them. */
export function dequantizedPlanes(
  planes: PiecePlanes,
  storage: Exclude<PieceStorage, { format: "dense" }>,
  codebook: readonly number[] | null,
): CheckpointTensor {
  const { codes } = planes;
  const [rows = 0, stored = 0] = codes.shape;
  const columns = storage.format === "code4" ? 2 * stored : stored;
  const fill = ([row, column]: readonly SliceRange[], destination: Uint8Array): void => {
    if (row === undefined || column === undefined) return;
    const width = column.end - column.start;
    const values = new Float32Array(columns);
    for (let first = row.start; first < row.end; first += ROWS_AT_A_TIME) {
      const end = Math.min(row.end, first + ROWS_AT_A_TIME);
      const read = rowReader(weightOfRows(planes, storage, codebook, { start: first, end }));
      for (let r = first; r < end; r++) {
        read(r - first, values);
        const bytes = new Uint8Array(values.buffer, column.start * 4, width * 4);
        destination.set(bytes, (r - row.start) * width * 4);
      }
    }
  };
  return computedTensor({ name: codes.name, dtype: "f32", shape: [rows, columns], file: codes.file }, fill);
}

function weightOfRows(
  { codes, scales, minimums }: PiecePlanes,
  storage: Exclude<PieceStorage, { format: "dense" }>,
  codebook: readonly number[] | null,
  rows: SliceRange,
): LinearWeight {
  const { blockSize } = storage;
  const common = {
    codes: rowsOf(codes, rows),
    scales: rowsOf(scales, rows),
    minimums: minimums === null ? null : rowsOf(minimums, rows),
    blockSize,
  };
  if (storage.format === "int8") return { ...common, format: "int8", multiplier: storage.multiplier };
  const entries = allocate("codebook", "f32", [16]);
  f32Of(entries.tensor).set(codebook ?? []);
  return { ...common, format: "code4", codebook: entries };
}

function rowsOf(tensor: CheckpointTensor, rows: SliceRange): Operand {
  const columns = tensor.shape[1] ?? 0;
  const operand = allocate(tensor.name, tensor.dtype, [rows.end - rows.start, columns]);
  readSlice(tensor, [rows, { start: 0, end: columns }], bytesOf(operand.tensor));
  return operand;
}

function allocate(name: string, dtype: DType, shape: readonly number[]): Operand {
  const arena = Arena.create(name, elementCount(shape) * dtypeBytes(dtype));
  const tensor: Tensor = arena.allocate(name, dtype, shape);
  return { tensor, handle: 0, rows: shape.length === 1 ? 1 : (shape[0] ?? 0), columns: shape.at(-1) ?? 0 };
}

/** A matrix whose slices are made when they are asked for. */
function computedTensor(
  described: Omit<CheckpointTensor, "read" | "readSlice">,
  fill: (ranges: readonly SliceRange[], destination: Uint8Array) => void,
): CheckpointTensor {
  return {
    ...described,
    readSlice: fill,
    read: () => {
      throw new RangeError(`${described.name} is read in slices only`);
    },
  };
}
