/** How the matrices of a layer are stored on one rank: which of them side by side, and in what. */
import {
  type Checkpoint,
  CheckpointError,
  type LinearLayer,
  type LinearPart,
  MIN_BLOCK_SIZE,
  rangeSize,
} from "shardloom/plugin";
import { BlockTensor } from "./block-tensor.js";
import type { BlockFormat } from "./unpacking.js";

/** Storage of the weights of some matrices. */
export type Storage =
  /** Stored plainly in the file: in the dtype of unquantized weights. */
  | { readonly kind: "plain" }
  /** In blocks that the cut of this rank does not leave whole: their exact values, in f32. */
  | { readonly kind: "values" }
  /** Codes, scales and minimums, `blockSize` inputs a scale. */
  | ({ readonly kind: "blocks"; readonly blockSize: number } & Pick<
      BlockFormat,
      "execution" | "zero" | "hasMinimums" | "valueDType"
    >);

/** Neighbouring matrices of a layer in the same storage. */
export interface Segment {
  readonly storage: Storage;
  readonly parts: readonly LinearPart[];
  /** Row of the layer's output on this rank at which it begins. */
  readonly firstRow: number;
  readonly rows: number;
}

/**
 * The segments of a layer, in the order of rows. Matrices of different formats share one where their codes and scales mean
 * the same, as those of Q5_0 and Q8_0 do. Throws CheckpointError `SHAPE_MISMATCH` for a matrix in blocks of
 * another shape than the layer's.
 */
export function planSegments(layer: LinearLayer, checkpoint: Checkpoint): readonly Segment[] {
  const segments: Segment[] = [];
  for (const part of layer.parts) {
    const storage = storageOf(layer, part, checkpoint);
    const rows = rangeSize(part.rows);
    const last = segments.at(-1);
    if (last !== undefined && sameStorage(last.storage, storage)) {
      segments[segments.length - 1] = { ...last, parts: [...last.parts, part], rows: last.rows + rows };
    } else {
      segments.push({ storage, parts: [part], firstRow: part.localOffset, rows });
    }
  }
  return segments;
}

/** Name of the tensor of a part. */
export const weightOf = ({ prefix }: LinearPart): string => `${prefix}.weight`;

function storageOf(layer: LinearLayer, part: LinearPart, checkpoint: Checkpoint): Storage {
  const tensor = checkpoint.tensors.get(weightOf(part));
  // One that is missing is missed when the layer is loaded.
  if (!(tensor instanceof BlockTensor)) return { kind: "plain" };
  checkShape(tensor, [part.outputSize, layer.inputSize], layer.rank);
  const { execution, zero, scaleElements, hasMinimums, valueDType } = tensor.blocks;
  const blockSize = wholeBlockSize(scaleElements, layer);
  return blockSize === null
    ? { kind: "values" }
    : { kind: "blocks", blockSize, execution, zero, hasMinimums, valueDType };
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

function sameStorage(a: Storage, b: Storage): boolean {
  if (a.kind !== "blocks" || b.kind !== "blocks") return a.kind === b.kind;
  const sameCodes = a.execution === b.execution && a.zero === b.zero;
  const sameValues = a.hasMinimums === b.hasMinimums && a.valueDType === b.valueDType;
  return sameCodes && sameValues && a.blockSize === b.blockSize;
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
