/**
 * Quantization to 4 bits, byte for byte as bitsandbytes 0.50 does it on a CPU: each block is scaled by its largest
 * magnitude and every element becomes the nearest entry of the codebook, the lower one of two equally near. All
 * arithmetic is in f32. The tensor is one sequence of elements; blocks run across the ends of rows.
 */
import { CheckpointError } from "shardloom/plugin";
import { CODEBOOKS, type FourBitType } from "./codebooks.js";

const { fround } = Math;

/** How values become codes. */
interface Encoder {
  /** Bin of a scaled value -> its code, or UNSURE where a bound lies in the bin or at its edge. */
  readonly bins: Uint8Array;
  /** Midpoints of neighbours in the ascending codebook. A value above a bound takes the higher code. */
  readonly bounds: Float32Array;
  /** Position in the ascending codebook -> code. */
  readonly codes: Uint8Array;
}

const BINS_PER_UNIT = 512;
const UNSURE = 255;
/** Scaled values are rounded to f32 before they are compared, and not before their bin is found: less than this apart. */
const BIN_MARGIN = 1e-6;

const binOf = (scaled: number): number => Math.floor(scaled * BINS_PER_UNIT + BINS_PER_UNIT);

function createEncoder(type: FourBitType): Encoder {
  const codebook = CODEBOOKS[type];
  const codeValue = (code: number): number => codebook[code] ?? 0;
  // Codes of equal value keep their order: FP4's two zeros, of which 0 takes what is below or at zero, 8 what is above.
  const codes = Uint8Array.from(codebook.keys()).sort((a, b) => codeValue(a) - codeValue(b) || a - b);
  const bounds = Float32Array.from(codes.subarray(1), (code, i) => {
    return fround(codeValue(code) + codeValue(codes[i] ?? 0)) / 2;
  });
  // Scaled values reach a little beyond 1: x * (1 / |x|) is rounded twice.
  const bins = new Uint8Array(binOf(1) + 1);
  for (let bin = 0; bin < bins.length; bin++) bins[bin] = search({ bounds, codes }, bin / BINS_PER_UNIT - 1);
  for (const bound of bounds) bins.fill(UNSURE, binOf(bound - BIN_MARGIN), binOf(bound + BIN_MARGIN) + 1);
  return { bins, bounds, codes };
}

/** The code of a scaled value, exactly. */
function search({ bounds, codes }: Omit<Encoder, "bins">, scaled: number): number {
  let position = 0;
  while (scaled > (bounds[position] ?? Number.POSITIVE_INFINITY)) position++;
  return codes[position] ?? 0;
}

const encoders: Readonly<Record<FourBitType, Encoder>> = { nf4: createEncoder("nf4"), fp4: createEncoder("fp4") };

const MAGNITUDE_BITS = 0x7fffffff;
const INFINITY_BITS = 0x7f800000;

/** Below this, 1 / absmax would not be finite. */
const LEAST_DIVISOR = fround(1e-38);

/** Bytes of `elements` codes. */
export const packedBytes = (elements: number): number => Math.ceil(elements / 2);

/** Blocks of `elements` elements. */
export const blockCount = (elements: number, blockSize: number): number => Math.ceil(elements / blockSize);

/** Which elements of which tensor are quantized, for messages. */
export interface QuantizedRange {
  readonly tensor: string;
  /** Element of the tensor at which the values begin. */
  readonly firstElement: number;
}

/**
 * The largest magnitude of each block of `values`, which begin at a block. Throws CheckpointError `NON_FINITE_WEIGHT` for
 * infinities and NaN.
 */
export function findAbsmax(values: Float32Array, blockSize: number, absmax: Float32Array, range: QuantizedRange): void {
  // The bits of magnitudes are ordered as the magnitudes are, infinity and NaN above all others.
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  const largestBits = new Int32Array(absmax.buffer, absmax.byteOffset, absmax.length);
  for (let start = 0, block = 0; start < values.length; start += blockSize, block++) {
    const end = Math.min(start + blockSize, values.length);
    let largest = 0;
    for (let i = start; i < end; i++) {
      const magnitude = (bits[i] ?? 0) & MAGNITUDE_BITS;
      if (magnitude > largest) largest = magnitude;
    }
    if (largest >= INFINITY_BITS) throw notFinite(values, start, range);
    largestBits[block] = largest;
  }
}

function notFinite(values: Float32Array, start: number, { tensor, firstElement }: QuantizedRange): CheckpointError {
  const at = values.findIndex((value, i) => i >= start && !Number.isFinite(value));
  const received = String(values[at]);
  return new CheckpointError(
    "NON_FINITE_WEIGHT",
    `${tensor}: expected finite values to quantize but element ${firstElement + at} is ${received}`,
    { tensor, expected: "finite values", received },
  );
}

/**
 * The codes of `values`, which begin at a block, two a byte, the first in the high half. `absmax` holds one scale a block.
 * A last block that is shorter than `blockSize` is the tensor's last: bitsandbytes divides there, and multiplies by the
 * reciprocal elsewhere.
 */
export function encode(
  type: FourBitType,
  values: Float32Array,
  blockSize: number,
  absmax: Float32Array,
  codes: Uint8Array,
): void {
  const encoder = encoders[type];
  const whole = values.length - (values.length % blockSize);
  for (let start = 0, block = 0; start < whole; start += blockSize, block++) {
    encodeScaled(encoder, values, start, start + blockSize, fround(1 / divisor(absmax, block)), codes);
  }
  if (whole === values.length) return;
  const scale = divisor(absmax, whole / blockSize);
  const last = values.subarray(whole).map((value) => value / scale);
  encodeScaled(encoder, last, 0, last.length, 1, codes.subarray(whole / 2));
}

function divisor(absmax: Float32Array, block: number): number {
  return Math.max(absmax[block] ?? 0, LEAST_DIVISOR);
}

/** Codes of `values[start..end) * factor`. `start` is even; an odd `end` is the end of the tensor. */
function encodeScaled(
  encoder: Encoder,
  values: Float32Array,
  start: number,
  end: number,
  factor: number,
  out: Uint8Array,
): void {
  const { bins } = encoder;
  const binFactor = factor * BINS_PER_UNIT;
  for (let i = start; i < end; i += 2) {
    const a = values[i] ?? 0;
    // A half byte beyond an odd end holds the code of 0.
    const b = i + 1 < end ? (values[i + 1] ?? 0) : 0;
    let high = bins[(a * binFactor + BINS_PER_UNIT) | 0] ?? 0;
    let low = bins[(b * binFactor + BINS_PER_UNIT) | 0] ?? 0;
    if (high === UNSURE) high = search(encoder, fround(a * factor));
    if (low === UNSURE) low = search(encoder, fround(b * factor));
    out[i >>> 1] = (high << 4) | low;
  }
}

/** `out[i]` = value of code `firstElement + i` of `codes`, times its block's scale: one rounding. */
export function decode(
  codebook: Float32Array,
  codes: Uint8Array,
  scales: Float32Array,
  blockSize: number,
  firstElement: number,
  out: Float32Array,
): void {
  for (let done = 0; done < out.length; ) {
    const element = firstElement + done;
    const scale = scales[Math.floor(element / blockSize)] ?? 0;
    const end = Math.min(out.length, done + blockSize - (element % blockSize));
    for (let i = done; i < end; i++) {
      const at = firstElement + i;
      const byte = codes[at >>> 1] ?? 0;
      out[i] = (codebook[(at & 1) === 0 ? byte >>> 4 : byte & 15] ?? 0) * scale;
    }
    done = end;
  }
}
