/**
 * How the parts of a layer are stored: consecutive parts that can be one weight for the kernels are one segment. Most
 * layers have one; a fused layer some of whose matrices were skipped when the checkpoint was quantized has more.
 */
import { CheckpointError, type LinearLayer, type LinearPart, MIN_BLOCK_SIZE, rangeSize } from "shardloom/plugin";
import type { FourBitType } from "./codebooks.js";
import type { QuantizedWeight } from "./quantized-weight.js";

/**
 * Where the values of a part come from: a loaded weight, which may hold other parts as well; null if it is not quantized,
 * undefined if there is none.
 */
export type WeightOf = (layer: LinearLayer, part: LinearPart) => QuantizedWeight | null | undefined;

/** What a segment is stored as. */
export type Storage =
  /** 4-bit codes, and a scale for each `group` inputs of a row. */
  | { readonly kind: "code4"; readonly type: FourBitType; readonly group: number }
  /** 8-bit codes, and a scale for each row. */
  | { readonly kind: "int8" }
  /** f32 values of codes that do not form groups of 16 inputs in every row. */
  | { readonly kind: "values" }
  /** What the checkpoint holds, in the layer's dtype. */
  | { readonly kind: "plain" };

export interface Segment {
  readonly storage: Storage;
  readonly parts: readonly LinearPart[];
  /** Loaded weights that hold its parts, each once. */
  readonly weights: readonly QuantizedWeight[];
  /** Rows of the layer's output on this rank. */
  readonly firstRow: number;
  readonly rows: number;
}

/** The segments of a layer on this rank, in the order of rows. Throws CheckpointError `SHAPE_MISMATCH`. */
export function planSegments(layer: LinearLayer, weightOf: WeightOf): readonly Segment[] {
  const found = layer.parts.map((part) => weightOf(layer, part));
  const segments: Segment[] = [];
  layer.parts.forEach((part, i) => {
    // A part that is missing is expected as its neighbour is stored; loading will say that it is missing.
    const like = found[i] === undefined ? (found.slice(0, i).findLast(isKnown) ?? found.find(isKnown)) : found[i];
    const weight = found[i] ?? null;
    if (weight !== null) checkShape(layer, part, weight);
    const next = segmentOf(part, storageOf(layer, like ?? null), weight);
    const last = segments.at(-1);
    const joined = last === undefined ? null : join(last, next);
    if (joined === null) segments.push(next);
    else segments[segments.length - 1] = joined;
  });
  return segments;
}

function isKnown(weight: QuantizedWeight | null | undefined): boolean {
  return weight !== undefined;
}

function segmentOf(part: LinearPart, storage: Storage, weight: QuantizedWeight | null): Segment {
  return {
    storage,
    parts: [part],
    weights: weight === null ? [] : [weight],
    firstRow: part.localOffset,
    rows: rangeSize(part.rows),
  };
}

function storageOf({ inputs, inputSize }: LinearLayer, weight: QuantizedWeight | null): Storage {
  if (weight === null) return { kind: "plain" };
  if (weight.format === "int8") return { kind: "int8" };
  // Every run of this many inputs of this rank lies in one block, in whichever row.
  const group = [inputSize, inputs.start, rangeSize(inputs)].reduce(gcd, weight.blockSize);
  return group < MIN_BLOCK_SIZE ? { kind: "values" } : { kind: "code4", type: weight.type, group };
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** Two neighbours as one segment; null where they need a weight each. */
function join(a: Segment, b: Segment): Segment | null {
  const storage = joinStorage(a.storage, b.storage);
  if (storage === null) return null;
  const weights = [...new Set([...a.weights, ...b.weights])];
  return { storage, parts: [...a.parts, ...b.parts], weights, firstRow: a.firstRow, rows: a.rows + b.rows };
}

function joinStorage(a: Storage, b: Storage): Storage | null {
  if (a.kind !== "code4" || b.kind !== "code4") return a.kind === b.kind ? a : null;
  // Groups are powers of two: the smaller one divides the larger, and repeats its scales.
  return a.type === b.type ? { ...a, group: Math.min(a.group, b.group) } : null;
}

/** Throws CheckpointError `SHAPE_MISMATCH` unless a weight is the matrix, or the stack of matrices, that the layer takes. */
function checkShape(layer: LinearLayer, part: LinearPart, weight: QuantizedWeight): void {
  const fused = weight.name !== `${part.prefix}.weight`;
  const rows = fused ? layer.parts.reduce((sum, { outputSize }) => sum + outputSize, 0) : part.outputSize;
  const [received, columns] = weight.shape;
  if (weight.shape.length === 2 && received === rows && columns === layer.inputSize) return;
  const expected = `[${rows}, ${layer.inputSize}]`;
  throw new CheckpointError(
    "SHAPE_MISMATCH",
    `${weight.name}: expected ${expected} for ${layer.prefix} on rank ${layer.rank} but the quantized weight is ` +
      `[${weight.shape.join(", ")}] (${weight.file})`,
    { tensor: weight.name, expected, received: `[${weight.shape.join(", ")}]`, rank: layer.rank, file: weight.file },
  );
}
