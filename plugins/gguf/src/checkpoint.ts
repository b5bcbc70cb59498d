import type { Checkpoint, CheckpointTensor, RandomAccessFile } from "shardloom/plugin";
import { BlockTensor, bounded } from "./block-tensor.js";
import { type ReadBytes, rowsInFile, unpermuted } from "./row-order.js";
import type { StoredTensor } from "./tensor-layout.js";
import { TensorReader } from "./tensor-reader.js";

/** A stored tensor under the name that models are published with. */
export interface NamedTensor {
  readonly name: string;
  readonly stored: StoredTensor;
  /** Number of heads whose rotary pairs lie side by side in the file; null for tensors in their own order. */
  readonly rotaryHeads: number | null;
}

/** A checkpoint over an open file, which it owns from now on. Tensors in block formats are BlockTensors. */
export function createCheckpoint(file: RandomAccessFile, named: readonly NamedTensor[]): Checkpoint {
  const reader = new TensorReader(file);
  const tensors = new Map<string, CheckpointTensor>();
  for (const { name, stored, rotaryHeads } of named) {
    const origin = { name, file: file.path, rotaryHeads };
    const { blocks } = stored.format;
    tensors.set(
      name,
      blocks === null ? plainTensor(origin, stored, reader) : new BlockTensor(origin, stored, blocks, reader),
    );
  }
  return {
    tensors,
    get bytesRead() {
      return reader.bytesRead;
    },
    openFiles: [file],
    close: () => reader.close(),
  };
}

function plainTensor(
  { name, file, rotaryHeads }: { readonly name: string; readonly file: string; readonly rotaryHeads: number | null },
  stored: StoredTensor,
  reader: TensorReader,
): CheckpointTensor {
  const { shape, format, sizeBytes } = stored;
  const rows = shape[0] ?? 1;
  const inFileOrder: ReadBytes = (destination, byteOffset) => reader.read(stored, "values", destination, byteOffset);
  const read =
    rotaryHeads === null ? inFileOrder : unpermuted(inFileOrder, { rows, rowBytes: sizeBytes / rows }, rotaryHeads);
  const plain = { name, dtype: format.dtype, shape, file, read: bounded(name, sizeBytes, read) };
  const [, columns, ...inner] = shape;
  if (columns === undefined || inner.length > 0) return plain;
  // Of a matrix, rows at equal distances come in one read.
  const elementBytes = sizeBytes / (rows * columns);
  const readSlice: CheckpointTensor["readSlice"] = ([row, column], destination) => {
    if (row === undefined || column === undefined || destination.length === 0) return;
    const runBytes = (column.end - column.start) * elementBytes;
    const rowBytes = columns * elementBytes;
    for (const { first, stride, runs, to } of rowsInFile(row, rows, rotaryHeads)) {
      const at = (to - row.start) * runBytes;
      const strided = {
        position: first * rowBytes + column.start * elementBytes,
        runBytes,
        stride: stride * rowBytes,
        runs,
      };
      reader.readRuns(stored, strided, destination.subarray(at, at + runs * runBytes));
    }
  };
  return { ...plain, readSlice };
}
