/**
 * A 4-bit weight on disk: packed codes and their sidecars, checked against each other before any of them is used. Source:
 * QuantState of bitsandbytes/functional.py.
 */
import {
  type CheckpointTensor,
  type DType,
  dtypeBytes,
  elementCount,
  type ReadGroup,
  type SharedPiece,
} from "shardloom/plugin";
import { describeTensor, invalid } from "./checkpoint-error.js";
import { CODEBOOKS, type FourBitType } from "./codebooks.js";
import { expandAbsmax } from "./double-quant.js";
import { MAX_STATE_BYTES, type NestedState, parseQuantState, STATE_PREFIX } from "./quant-state.js";
import { blockCount, packedBytes } from "./quantize-4bit.js";
import type { FourBitWeight, TableHolder, TableSlot } from "./quantized-weight.js";

/** Sidecars that are known by what follows the name of the weight. */
export const FOUR_BIT_SIDECARS = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] as const;

export type FourBitSidecar = (typeof FOUR_BIT_SIDECARS)[number];

/** What the checkpoint holds beside a weight. */
export interface FourBitParts {
  readonly sidecars: Map<FourBitSidecar, CheckpointTensor>;
  readonly states: CheckpointTensor[];
}

/** A stored codebook may differ from the built-in one by this much: it was rounded otherwise, but is the same. */
const CODEBOOK_TOLERANCE = 1e-6;

const NESTED_CODES = 256;

/**
 * Opens a weight with its sidecars; reads the state and the codebook, nothing else. Throws CheckpointError
 * `MISSING_QUANT_STATE`, `DUPLICATE_QUANT_STATE`, `INVALID_QUANT_STATE`, `QUANT_MAP_MISMATCH`, `SHAPE_MISMATCH`,
 * `DTYPE_MISMATCH`.
 */
export function openFourBit(
  weight: CheckpointTensor,
  parts: FourBitParts,
  slot: TableSlot,
  group?: ReadGroup,
): FourBitWeight {
  const state = readState(weight, parts);
  const { type, blockSize, shape, nested } = state;
  const elements = elementCount(shape);
  const bytes = elementCount(weight.shape) * dtypeBytes(weight.dtype);
  // Whatever dtype the codes were declared as, the tensor's bytes in file order are the codes.
  if (bytes !== packedBytes(elements)) {
    const expected = `${packedBytes(elements)} bytes of codes for shape [${shape.join(", ")}]`;
    throw invalid("SHAPE_MISMATCH", weight, expected, `${bytes}, ${describeTensor(weight)}`);
  }
  const blocks = blockCount(elements, blockSize);
  const sidecar = (key: FourBitSidecar, dtype: DType, length: number): CheckpointTensor => {
    return expectVector(required(weight, parts, key), dtype, length);
  };
  checkCodebook(sidecar("quant_map", "f32", 16), type);
  const absmax = sidecar("absmax", nested === null ? "f32" : "u8", blocks);
  const { name, file } = weight;
  const header = { format: "4bit", name, file, shape, type, blockSize } as const;
  const readCodes = (destination: Uint8Array, firstByte: number): void => weight.read(destination, firstByte);
  if (nested === null) {
    refuseNested(parts);
    return { ...header, readCodes, readScales: (out, first) => readFiniteFloats(absmax, out, first) };
  }
  const scales = new NestedScales({
    codes: absmax,
    absmax: sidecar("nested_absmax", "f32", blockCount(blocks, nested.blockSize)),
    map: sidecar("nested_quant_map", "f32", NESTED_CODES),
    state: nested,
    slot,
    group,
  });
  return { ...header, readCodes, readScales: (out, first) => scales.read(out, first) };
}

function readState(weight: CheckpointTensor, { states }: FourBitParts): ReturnType<typeof parseQuantState> {
  const [tensor, other] = states;
  if (tensor === undefined) throw missing(weight, `${STATE_PREFIX}nf4 or ${STATE_PREFIX}fp4`);
  if (other !== undefined) {
    throw invalid("DUPLICATE_QUANT_STATE", other, `one quant state for ${weight.name}`, `${tensor.name} as well`);
  }
  const sizeBytes = elementCount(tensor.shape) * dtypeBytes(tensor.dtype);
  if (tensor.dtype !== "u8" || tensor.shape.length !== 1 || sizeBytes > MAX_STATE_BYTES) {
    const expected = `[n] u8 with n up to ${MAX_STATE_BYTES}`;
    throw invalid("INVALID_QUANT_STATE", tensor, expected, describeTensor(tensor));
  }
  const bytes = new Uint8Array(sizeBytes);
  tensor.read(bytes, 0);
  return parseQuantState(bytes, tensor);
}

function required(weight: CheckpointTensor, { sidecars }: FourBitParts, key: FourBitSidecar): CheckpointTensor {
  const tensor = sidecars.get(key);
  if (tensor === undefined) throw missing(weight, key);
  return tensor;
}

function missing(weight: CheckpointTensor, key: string): Error {
  return invalid("MISSING_QUANT_STATE", weight, `${weight.name}.${key} beside it`, "none");
}

function refuseNested({ sidecars }: FourBitParts): void {
  const extra = sidecars.get("nested_absmax") ?? sidecars.get("nested_quant_map");
  if (extra !== undefined) {
    throw invalid("INVALID_QUANT_STATE", extra, "nested_blocksize in the quant state, as it is nested", "none");
  }
}

function expectVector(tensor: CheckpointTensor, dtype: DType, length: number): CheckpointTensor {
  const expected = describeTensor({ dtype, shape: [length] });
  if (tensor.dtype !== dtype) throw invalid("DTYPE_MISMATCH", tensor, expected, describeTensor(tensor));
  if (tensor.shape.length !== 1 || tensor.shape[0] !== length) {
    throw invalid("SHAPE_MISMATCH", tensor, expected, describeTensor(tensor));
  }
  return tensor;
}

function checkCodebook(tensor: CheckpointTensor, type: FourBitType): void {
  const stored = new Float32Array(16);
  readFloats(tensor, stored, 0);
  CODEBOOKS[type].forEach((expected, code) => {
    const received = stored[code] ?? Number.NaN;
    if (Math.abs(received - expected) <= CODEBOOK_TOLERANCE) return;
    throw invalid("QUANT_MAP_MISMATCH", tensor, `${expected} for code ${code} of ${type}`, received);
  });
}

/** Elements of an f32 tensor from `first` on. */
export function readFloats(tensor: CheckpointTensor, out: Float32Array, first: number): void {
  tensor.read(new Uint8Array(out.buffer, out.byteOffset, out.byteLength), first * Float32Array.BYTES_PER_ELEMENT);
}

/** The same; throws CheckpointError `NON_FINITE_SCALE` for infinities and NaN. */
export function readFiniteFloats(tensor: CheckpointTensor, out: Float32Array, first: number): void {
  readFloats(tensor, out, first);
  let poison = 0;
  for (let i = 0; i < out.length; i++) poison += (out[i] ?? 0) * 0;
  if (poison === 0) return;
  const at = out.findIndex((value) => !Number.isFinite(value));
  throw invalid("NON_FINITE_SCALE", tensor, "finite scales", `${out[at]} at ${first + at}`);
}

interface NestedParts {
  readonly codes: CheckpointTensor;
  readonly absmax: CheckpointTensor;
  readonly map: CheckpointTensor;
  readonly state: NestedState;
  readonly slot: TableSlot;
  readonly group: ReadGroup | undefined;
}

/**
 * Scales of a doubly quantized weight, expanded on the grid of the whole tensor when one of them is first asked for: by one
 * rank for all of them.
 */
class NestedScales implements TableHolder {
  readonly #parts: NestedParts;
  #table: Float32Array | null = null;
  #piece: SharedPiece | undefined;

  constructor(parts: NestedParts) {
    this.#parts = parts;
  }

  read(out: Float32Array, firstBlock: number): void {
    this.#parts.slot.enter(this);
    this.#table ??= this.#tableOf(this.#parts);
    out.set(this.#table.subarray(firstBlock, firstBlock + out.length));
  }

  release(): void {
    this.#table = null;
    this.#piece?.release();
    this.#piece = undefined;
  }

  #tableOf({ codes, group }: NestedParts): Float32Array {
    const blocks = elementCount(codes.shape);
    if (group === undefined || blocks < group.reads.leastBytes) {
      const table = new Float32Array(blocks);
      this.#expand(table);
      return table;
    }
    const floats = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.buffer, bytes.byteOffset, blocks);
    const [piece] = group.reads.acquire(
      [
        {
          key: `${codes.name}, expanded`,
          sizeBytes: blocks * Float32Array.BYTES_PER_ELEMENT,
          fill: (bytes) => this.#expand(floats(bytes)),
        },
      ],
      group.worldSize,
    );
    this.#piece = piece;
    return piece === undefined ? new Float32Array(0) : floats(piece.bytes);
  }

  #expand(table: Float32Array): void {
    const { codes, absmax, map, state } = this.#parts;
    const nested = {
      codes: new Uint8Array(elementCount(codes.shape)),
      absmax: new Float32Array(elementCount(absmax.shape)),
      offset: state.offset,
    };
    const values = new Float32Array(NESTED_CODES);
    codes.read(nested.codes, 0);
    readFiniteFloats(absmax, nested.absmax, 0);
    readFiniteFloats(map, values, 0);
    expandAbsmax(nested, values, state.blockSize, table);
  }
}
