import { type Checkpoint, type CheckpointTensor, dtypeBytes, type RandomAccessFile } from "shardloom/plugin";
import type { StoredTensor } from "./tensor-layout.js";
import { TensorReader } from "./tensor-reader.js";

/** A stored tensor under the name that models are published with. */
export interface NamedTensor {
  readonly name: string;
  readonly stored: StoredTensor;
  /** Number of heads whose rotary pairs lie side by side in the file; null for tensors in their own order. */
  readonly rotaryHeads: number | null;
}

/** A checkpoint over an open file, which it owns from now on. */
export function createCheckpoint(file: RandomAccessFile, named: readonly NamedTensor[]): Checkpoint {
  const reader = new TensorReader(file);
  const tensors = new Map<string, CheckpointTensor>();
  for (const tensor of named) tensors.set(tensor.name, checkpointTensor(tensor, file, reader));
  return {
    tensors,
    get bytesRead() {
      return reader.bytesRead;
    },
    close: () => file.close(),
  };
}

function checkpointTensor(
  { name, stored, rotaryHeads }: NamedTensor,
  file: RandomAccessFile,
  reader: TensorReader,
): CheckpointTensor {
  const { dtype } = stored.format;
  const sizeBytes = stored.shape.reduce((product, extent) => product * extent, dtypeBytes(dtype));
  return {
    name,
    dtype,
    shape: stored.shape,
    file: file.path,
    read(destination, byteOffset) {
      const end = byteOffset + destination.length;
      if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || end > sizeBytes) {
        throw new RangeError(`${name}: bytes ${byteOffset} to ${end} are outside its ${sizeBytes} bytes`);
      }
      if (rotaryHeads === null) reader.read(stored, destination, byteOffset);
      else reader.readUnpermuted(stored, rotaryHeads, destination, byteOffset);
    },
  };
}
