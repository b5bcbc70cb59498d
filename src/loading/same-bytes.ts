import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { dtypeBytes } from "../core/dtype.js";
import { elementCount } from "../core/tensor.js";

const RUN_BYTES = 64 * 1024;
const MAX_RUNS = 16;

/**
 * Whether two tensors are of one dtype and shape and hold the same bytes, as far as a look at both of them tells: of more
 * than 1 MiB, evenly spaced runs are compared and not everything. Weights that were trained apart differ nearly
 * everywhere. Throws what reading throws.
 */
export function seemEqual(a: CheckpointTensor, b: CheckpointTensor): boolean {
  if (a.dtype !== b.dtype || a.shape.length !== b.shape.length) return false;
  if (a.shape.some((extent, dim) => extent !== b.shape[dim])) return false;
  const sizeBytes = elementCount(a.shape) * dtypeBytes(a.dtype);
  const runs = Math.min(MAX_RUNS, Math.ceil(sizeBytes / RUN_BYTES));
  const runBytes = Math.min(RUN_BYTES, sizeBytes);
  const [ofA, ofB] = [new Uint8Array(runBytes), new Uint8Array(runBytes)];
  for (let run = 0; run < runs; run++) {
    // The first run begins at the first byte, the last one ends at the last.
    const offset = runs === 1 ? 0 : Math.floor((run * (sizeBytes - runBytes)) / (runs - 1));
    a.read(ofA, offset);
    b.read(ofB, offset);
    if (Buffer.compare(ofA, ofB) !== 0) return false;
  }
  return true;
}
