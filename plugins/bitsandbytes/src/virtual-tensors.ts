/**
 * Checkpoint tensors that are computed when they are read: what layers load instead of what bitsandbytes stores. They are
 * regular, row by row, so that weight loaders may cut them wherever they like.
 */
import { type CheckpointTensor, elementCount } from "shardloom/plugin";
import { CODEBOOKS } from "./codebooks.js";
import { decode, packedBytes } from "./quantize-4bit.js";
import { INT8_MULTIPLIER } from "./quantize-int8.js";
import type { EightBitWeight, FourBitWeight, QuantizedWeight } from "./quantized-weight.js";

const FLOAT_BYTES = 4;

/** Elements computed at a time. */
const CHUNK_ELEMENTS = 32_768;

/** Codes of a 4-bit weight as bytes, in a shape of the caller's that holds as many. */
export function packedCodes(weight: FourBitWeight, shape: readonly number[]): CheckpointTensor {
  return byteTensor(weight, weight.name, "u8", shape, (out, first) => weight.readCodes(out, first));
}

/** Codes of an int8 weight, `[rows, columns]`. */
export function int8Codes(weight: EightBitWeight): CheckpointTensor {
  return byteTensor(weight, weight.name, "i8", weight.shape, (out, first) => weight.readCodes(out, first));
}

/** Scales of the rows of an int8 weight, f32 `[rows]`. */
export function rowScales(weight: EightBitWeight, name: string): CheckpointTensor {
  return floatTensor(weight, name, [weight.shape[0]], (out, first) => weight.readScales(out, first));
}

/**
 * Scales of a 4-bit weight `[rows, columns]` on a grid that begins anew in every row: f32 `[rows, columns / group]`, entry
 * (r, j) the scale of element (r, j * group). `group` divides the block size and the columns, so each run of `group` inputs
 * lies in one block, and the scales are those of the blocks, each as often as it takes.
 */
export function groupScales(weight: FourBitWeight, name: string, group: number): CheckpointTensor {
  const repeat = weight.blockSize / group;
  const [rows = 0, columns = 0] = weight.shape;
  if (repeat === 1) {
    return floatTensor(weight, name, [rows, columns / group], (out, first) => weight.readScales(out, first));
  }
  return floatTensor(weight, name, [rows, columns / group], (out, first) => {
    const firstBlock = Math.floor(first / repeat);
    const scales = new Float32Array(Math.floor((first + out.length - 1) / repeat) + 1 - firstBlock);
    weight.readScales(scales, firstBlock);
    for (let i = 0; i < out.length; i++) out[i] = scales[Math.floor((first + i) / repeat) - firstBlock] ?? 0;
  });
}

/** Values of a quantized weight in its own shape, f32. */
export function dequantized(weight: QuantizedWeight): CheckpointTensor {
  const fill = weight.format === "4bit" ? fourBitValues(weight) : int8Values(weight);
  return floatTensor(weight, weight.name, weight.shape, fill);
}

/** Fills `out` with elements from `first` on. */
type Fill<Elements> = (out: Elements, first: number) => void;

function fourBitValues(weight: FourBitWeight): Fill<Float32Array> {
  const { blockSize } = weight;
  const codebook = CODEBOOKS[weight.type];
  return (out, first) => {
    // Codes and scales from the first block that is touched on, so that positions count from a block.
    const firstBlock = Math.floor(first / blockSize);
    const base = firstBlock * blockSize;
    const skippedBytes = Math.floor((first - base) / 2);
    const codes = new Uint8Array(packedBytes(first + out.length - base));
    const scales = new Float32Array(Math.floor((first + out.length - 1) / blockSize) + 1 - firstBlock);
    weight.readCodes(codes.subarray(skippedBytes), base / 2 + skippedBytes);
    weight.readScales(scales, firstBlock);
    decode(codebook, codes, scales, blockSize, first - base, out);
  };
}

function int8Values(weight: EightBitWeight): Fill<Float32Array> {
  const [, columns] = weight.shape;
  return (out, first) => {
    const firstRow = Math.floor(first / columns);
    const codes = new Int8Array(out.length);
    const scales = new Float32Array(Math.floor((first + out.length - 1) / columns) + 1 - firstRow);
    weight.readCodes(new Uint8Array(codes.buffer), first);
    weight.readScales(scales, firstRow);
    for (let i = 0; i < out.length; i++) {
      const scale = scales[Math.floor((first + i) / columns) - firstRow] ?? 0;
      out[i] = Math.fround((codes[i] ?? 0) * scale) * INT8_MULTIPLIER;
    }
  };
}

function byteTensor(
  { file }: QuantizedWeight,
  name: string,
  dtype: "u8" | "i8",
  shape: readonly number[],
  fill: Fill<Uint8Array>,
): CheckpointTensor {
  const sizeBytes = elementCount(shape);
  return {
    name,
    dtype,
    shape,
    file,
    read(destination, byteOffset) {
      checkBounds(name, sizeBytes, byteOffset, destination.length);
      if (destination.length > 0) fill(destination, byteOffset);
    },
  };
}

function floatTensor(
  { file }: QuantizedWeight,
  name: string,
  shape: readonly number[],
  fill: Fill<Float32Array>,
): CheckpointTensor {
  const sizeBytes = elementCount(shape) * FLOAT_BYTES;
  return {
    name,
    dtype: "f32",
    shape,
    file,
    read(destination, byteOffset) {
      checkBounds(name, sizeBytes, byteOffset, destination.length);
      const first = Math.floor(byteOffset / FLOAT_BYTES);
      const end = Math.ceil((byteOffset + destination.length) / FLOAT_BYTES);
      const aligned = destination.byteOffset % FLOAT_BYTES === 0 && destination.length === (end - first) * FLOAT_BYTES;
      // Bytes that are no whole elements, or lie where none can be stored, go through memory of our own.
      const elements = aligned
        ? new Float32Array(destination.buffer, destination.byteOffset, end - first)
        : new Float32Array(end - first);
      for (let at = 0; at < elements.length; at += CHUNK_ELEMENTS) {
        fill(elements.subarray(at, at + CHUNK_ELEMENTS), first + at);
      }
      if (aligned) return;
      const skipped = byteOffset - first * FLOAT_BYTES;
      destination.set(new Uint8Array(elements.buffer, skipped, destination.length));
    },
  };
}

function checkBounds(name: string, sizeBytes: number, byteOffset: number, length: number): void {
  if (Number.isSafeInteger(byteOffset) && byteOffset >= 0 && byteOffset + length <= sizeBytes) return;
  throw new RangeError(`${name}: bytes ${byteOffset} to ${byteOffset + length} are outside its ${sizeBytes} bytes`);
}
