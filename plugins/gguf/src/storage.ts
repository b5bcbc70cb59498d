/** How the matrices of a layer are stored on one rank. */
import {
  type Checkpoint,
  CheckpointError,
  type ExecutionStorage,
  type LinearLayer,
  type LinearPart,
  MIN_BLOCK_SIZE,
} from "shardloom/plugin";
import { BlockTensor } from "./block-tensor.js";

/** Name of the tensor of a part. */
export const weightOf = ({ prefix }: LinearPart): string => `${prefix}.weight`;

/**
 * How a matrix is stored on this rank: as in the file where it is plain there, in blocks, or, where the cut of this rank does
 * not leave blocks whole, as their exact values in f32. Matrices of different formats are alike where their codes and scales mean
 * the same, as those of Q5_0 and Q8_0 do. Throws CheckpointError `SHAPE_MISMATCH` for a matrix in blocks of another shape than
 * the layer's.
 */
export function storageOf(layer: LinearLayer, part: LinearPart, checkpoint: Checkpoint): ExecutionStorage {
  const tensor = checkpoint.tensors.get(weightOf(part));
  // One that is missing is missed when the layer is loaded.
  if (!(tensor instanceof BlockTensor)) return { kind: "dense", dtype: layer.dtype };
  checkShape(tensor, [part.outputSize, layer.inputSize], layer.rank);
  const { execution, zero, scaleElements, hasMinimums: minimums, valueDType } = tensor.blocks;
  const blockSize = wholeBlockSize(scaleElements, layer);
  if (blockSize === null) return { kind: "dense", dtype: "f32" };
  const codebook = execution === "code4" ? codesFrom(zero) : null;
  return { kind: "blocks", execution, blockSize, minimums, valueDType, codebook, multiplier: 1 };
}

/** What 4-bit codes stand for where code `zero` is 0. */
function codesFrom(zero: number): readonly number[] {
  return Array.from({ length: 16 }, (_, code) => code - zero);
}

/**
 * Inputs a scale holds for on this rank: as many as in the format, or that halved until no edge of the rank's inputs lies
 * inside; null where kernels do not take so few.
 */
function wholeBlockSize(scaleElements: number, { inputs }: LinearLayer): number | null {
  for (let size = scaleElements; size >= MIN_BLOCK_SIZE; size /= 2) {
    if (inputs.start % size === 0 && inputs.end % size === 0) return size;
  }
  return null;
}

function checkShape({ name, shape, file }: BlockTensor, expected: readonly number[], rank: number): void {
  if (shape.length === expected.length && shape.every((extent, i) => extent === expected[i])) return;
  const [wanted, received] = [`[${expected.join(", ")}]`, `[${shape.join(", ")}]`];
  throw new CheckpointError("SHAPE_MISMATCH", `${file}: expected ${name} to be ${wanted} but received ${received}`, {
    file,
    tensor: name,
    expected: wanted,
    received,
    rank,
  });
}
