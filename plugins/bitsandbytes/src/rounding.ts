/** Roundings to nearest, ties to even, that JavaScript has no operation for; without allocation, for inner loops. */

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);
const double = new Float64Array(1);
/** Low word first: every platform that runs this is little-endian. */
const words = new Uint32Array(double.buffer);

/** 2^52: sums with it are rounded to whole numbers. */
const WHOLE = 2 ** 52;
const LEAST_NORMAL = 2 ** -14;
const SUBNORMAL_STEP = 2 ** -24;
const LARGEST = 65504;

/** The whole number nearest to a value below 2^51 in magnitude. */
export function roundToInteger(value: number): number {
  return value + 1.5 * WHOLE - 1.5 * WHOLE;
}

/** The f16 value nearest to an f32 value, as a number; infinite beyond the range. */
export function roundToF16(value: number): number {
  const magnitude = value < 0 ? -value : value;
  if (magnitude < LEAST_NORMAL) {
    const rounded = (magnitude * 2 ** 24 + WHOLE - WHOLE) * SUBNORMAL_STEP;
    return value < 0 ? -rounded : rounded;
  }
  float[0] = value;
  const pattern = bits[0] ?? 0;
  bits[0] = (pattern + 0xfff + ((pattern >>> 13) & 1)) & ~0x1fff;
  const rounded = float[0] ?? 0;
  if (rounded > LARGEST) return Number.POSITIVE_INFINITY;
  return rounded < -LARGEST ? Number.NEGATIVE_INFINITY : rounded;
}

/** Rounds elements `[start, end)` to f16 in place. */
export function roundAllToF16(values: Float32Array, start: number, end: number): void {
  const patterns = new Int32Array(values.buffer, values.byteOffset, values.length);
  for (let i = start; i < end; i++) {
    const pattern = patterns[i] ?? 0;
    const magnitude = pattern & 0x7fffffff;
    // Between the least normal f16 and the first one that is rounded to infinity, it is the lower 13 bits that go.
    if (magnitude >= 0x38800000 && magnitude < 0x477ff000) {
      patterns[i] = (pattern + 0xfff + ((pattern >>> 13) & 1)) & ~0x1fff;
    } else {
      values[i] = roundToF16(values[i] ?? 0);
    }
  }
}

/** f32 of `a * b + c` for f32 values, with one rounding: a fused multiply-add. */
export function fusedMultiplyAdd(a: number, b: number, c: number): number {
  // Exact in f64, which has more than twice the digits.
  const product = a * b;
  const sum = product + c;
  // What the sum in f64 lost, exactly (Knuth's two-sum).
  const part = sum - product;
  const lost = product - (sum - part) + (c - part);
  if (lost === 0 || Number.isNaN(lost)) return Math.fround(sum);
  // Rounded to odd, the sum is rounded to f32 as the exact one would be: an even last bit hides nothing any more.
  double[0] = sum;
  const low = words[0] ?? 0;
  if ((low & 1) === 0) {
    if (lost > 0 === sum > 0) {
      words[0] = low | 1;
    } else {
      if (low === 0) words[1] = (words[1] ?? 0) - 1;
      words[0] = low - 1;
    }
  }
  return Math.fround(double[0] ?? 0);
}
