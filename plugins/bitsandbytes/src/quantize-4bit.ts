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
  /** Bin of a scaled value -> how many bounds lie below the bin, all of which is at or below the next bound but for one. */
  readonly bins: Uint8Array;
  /** Midpoints of neighbours in the ascending codebook, then Infinity. A value above a bound takes the higher code. */
  readonly bounds: Float32Array;
  /** Position in the ascending codebook -> code. */
  readonly codes: Uint8Array;
  /** Code of 0: fills the last byte of an odd number of elements. */
  readonly zero: number;
}

/** A bin is narrower than the least distance of two bounds, which is 1 / 384, FP4's. */
const BINS_PER_UNIT = 512;

function createEncoder(type: FourBitType): Encoder {
  const codebook = CODEBOOKS[type];
  const codeValue = (code: number): number => codebook[code] ?? 0;
  // Codes of equal value keep their order: FP4's two zeros, of which 0 takes what is below or at zero, 8 what is above.
  const ascending = Array.from(codebook.keys()).sort((a, b) => codeValue(a) - codeValue(b) || a - b);
  const bounds = ascending.map((code, i) => {
    const next = ascending[i + 1];
    return next === undefined ? Number.POSITIVE_INFINITY : fround(fround(codeValue(code) + codeValue(next)) / 2);
  });
  // Values reach a little beyond 1: x * (1 / |x|) is rounded twice.
  const bins = Uint8Array.from({ length: 2 * BINS_PER_UNIT + 2 }, (_, bin) => {
    return bounds.filter((bound) => bin / BINS_PER_UNIT - 1 > bound).length;
  });
  const position = bounds.filter((bound) => 0 > bound).length;
  return {
    bins,
    bounds: Float32Array.from(bounds),
    codes: Uint8Array.from(ascending),
    zero: ascending[position] ?? 0,
  };
}

const encoders: Readonly<Record<FourBitType, Encoder>> = { nf4: createEncoder("nf4"), fp4: createEncoder("fp4") };

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
  for (let start = 0, block = 0; start < values.length; start += blockSize, block++) {
    const end = Math.min(start + blockSize, values.length);
    let largest = 0;
    // 0 for finite values; NaN once one is not, since Infinity * 0 and NaN * 0 are NaN.
    let poison = 0;
    for (let i = start; i < end; i++) {
      const value = values[i] ?? 0;
      const magnitude = value < 0 ? -value : value;
      poison += value * 0;
      if (magnitude > largest) largest = magnitude;
    }
    if (poison !== 0) throw notFinite(values, start, range);
    absmax[block] = largest;
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
  { bins, bounds, codes: codeOf, zero }: Encoder,
  values: Float32Array,
  start: number,
  end: number,
  factor: number,
  out: Uint8Array,
): void {
  const pairs = end - ((end - start) & 1);
  for (let i = start; i < pairs; i += 2) {
    const a = fround((values[i] ?? 0) * factor);
    const b = fround((values[i + 1] ?? 0) * factor);
    // The bin says all but whether the one bound inside it is passed.
    let high = bins[((a + 1) * BINS_PER_UNIT) | 0] ?? 0;
    let low = bins[((b + 1) * BINS_PER_UNIT) | 0] ?? 0;
    if (a > (bounds[high] ?? 0)) high++;
    if (b > (bounds[low] ?? 0)) low++;
    out[i >>> 1] = ((codeOf[high] ?? 0) << 4) | (codeOf[low] ?? 0);
  }
  if (pairs === end) return;
  const a = fround((values[pairs] ?? 0) * factor);
  let high = bins[((a + 1) * BINS_PER_UNIT) | 0] ?? 0;
  if (a > (bounds[high] ?? 0)) high++;
  out[pairs >>> 1] = ((codeOf[high] ?? 0) << 4) | zero;
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
