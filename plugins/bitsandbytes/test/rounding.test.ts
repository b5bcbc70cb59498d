import assert from "node:assert/strict";
import fc from "fast-check";
import { bitsToF32, f16ToF32, f32ToF16 } from "shardloom/plugin";
import { outlierThreshold } from "../src/activation-rows.js";
import { fusedMultiplyAdd, roundAllToF16, roundToF16, roundToInteger } from "../src/rounding.js";

/** Every f32 but NaN, infinities included, by its bits: as many small ones as large ones. */
const anyFloat = fc
  .integer({ min: 0, max: 2 ** 32 - 1 })
  .map(bitsToF32)
  .filter((value) => !Number.isNaN(value));

/** A finite f32 as a fraction: `units * 2^-149`. */
function exact(value: number): bigint {
  let scaled = value;
  let shift = 149;
  while (shift > 0 && !Number.isInteger(scaled)) {
    scaled *= 2;
    shift--;
  }
  return BigInt(scaled) << BigInt(shift);
}

/** The f32 nearest to `units * 2^-298`, ties to even, by whole numbers alone. */
function nearest(units: bigint): number {
  const negative = units < 0n;
  let magnitude = negative ? -units : units;
  // Down to 24 digits, or to the least subnormal step.
  let step = 149n;
  while (magnitude >> step >= 2n ** 24n) step++;
  const rest = magnitude & ((1n << step) - 1n);
  magnitude >>= step;
  const half = 1n << (step - 1n);
  if (rest > half || (rest === half && (magnitude & 1n) === 1n)) magnitude++;
  const value = Number(magnitude) * 2 ** (Number(step) - 149) * 2 ** -149;
  return negative ? -value : value;
}

describe("roundings", () => {
  it("property: to f16 and back, as by the bit patterns", () => {
    fc.assert(
      fc.property(anyFloat, (value) => {
        assert.ok(Object.is(roundToF16(value), f16ToF32(f32ToF16(value))), `${value}`);
      }),
      { numRuns: 20_000 },
    );
  });

  it("rounds f16 ties, subnormal numbers and the end of the range to even", () => {
    const cases = [
      65504,
      65519.99609375,
      65520,
      -65520,
      2 ** -24,
      2 ** -25,
      1.5 * 2 ** -24,
      2 ** -14 - 2 ** -25,
      1 + 2 ** -11,
      1 + 3 * 2 ** -11,
    ];
    for (const value of cases) assert.equal(roundToF16(value), f16ToF32(f32ToF16(value)), `${value}`);
    assert.ok(Number.isNaN(roundToF16(Number.NaN)));
  });

  it("property: many at a time are rounded as one by one, and no others", () => {
    fc.assert(
      fc.property(fc.array(anyFloat, { minLength: 3, maxLength: 50 }), (list) => {
        const values = Float32Array.from(list);
        const expected = values.map((value, i) => (i === 0 || i === values.length - 1 ? value : roundToF16(value)));
        roundAllToF16(values, 1, values.length - 1);
        assert.deepEqual(values, expected);
      }),
      { numRuns: 1000 },
    );
  });

  it("property: an f32 reaches the threshold of outliers exactly when its f16 does", () => {
    const thresholds = fc.constantFrom(6, 0.1, 2 ** -24, 6.001, 65504, 1e6);
    const near = fc.tuple(thresholds, fc.double({ min: -1e-3, max: 1e-3, noNaN: true }));
    fc.assert(
      fc.property(near, ([threshold, by]) => {
        const value = Math.fround(threshold * (1 + by));
        assert.equal(value >= outlierThreshold(threshold).least, roundToF16(value) >= threshold, `${value}`);
      }),
      { numRuns: 5000 },
    );
    assert.equal(outlierThreshold(0).least, Number.POSITIVE_INFINITY);
  });

  it("rounds halves to the even whole number", () => {
    assert.deepEqual(
      [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5].map(roundToInteger),
      [0, 2, 2, 0, -2, -2, 126, -126],
    );
  });

  it("property: a fused multiply-add rounds once, as whole-number arithmetic does", () => {
    const float = fc
      .tuple(fc.integer({ min: -(2 ** 24), max: 2 ** 24 }), fc.integer({ min: -40, max: 20 }))
      .map(([digits, exponent]) => Math.fround(digits * 2 ** exponent));
    let roundedTwice = 0;
    fc.assert(
      fc.property(float, float, float, (a, b, c) => {
        const expected = nearest(exact(a) * exact(b) + (exact(c) << 149n));
        assert.equal(fusedMultiplyAdd(a, b, c), expected, `${a} * ${b} + ${c}`);
        if (Math.fround(Math.fround(a * b) + c) !== expected) roundedTwice++;
      }),
      { numRuns: 5000 },
    );
    assert.ok(roundedTwice > 0, "no case in which it matters");
  });

  it("a fused multiply-add sees what a sum in f64 would lose at the middle between two f32", () => {
    // 1 + 2^-24 is the middle between 1 and the next f32, and a product of two: 2^24 + 1 = 97 * 257 * 673.
    const [a, b] = [(97 * 257) / 2 ** 12, 673 / 2 ** 12];
    assert.equal(a * b, 1 + 2 ** -24);
    assert.equal(fusedMultiplyAdd(a, b, 0), 1);
    assert.equal(fusedMultiplyAdd(a, b, 2 ** -80), 1 + 2 ** -23);
    assert.equal(fusedMultiplyAdd(a, b, -(2 ** -80)), 1);
    assert.equal(fusedMultiplyAdd(-a, b, -(2 ** -80)), -1 - 2 ** -23);
  });
});
