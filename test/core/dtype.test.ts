import assert from "node:assert/strict";
import fc from "fast-check";
import { bf16ToF32, bitsToF32, convertFloats, f16ToF32, f32ToBf16, f32ToBits, f32ToF16 } from "../../src/core/dtype.js";
import { CheckpointError } from "../../src/core/errors.js";

/** All finite values of a 16-bit dtype, ascending, as pairs of value and bits; the oracle of rounding. */
function finiteValues(widen: (bits: number) => number): { value: number; bits: number }[] {
  return Array.from({ length: 1 << 16 }, (_, bits) => ({ value: widen(bits), bits }))
    .filter(({ value, bits }) => Number.isFinite(value) && bits !== 0x8000)
    .sort((a, b) => a.value - b.value);
}

/** Bits nearest to a value by search among all of them, ties to even bits; beyond the largest by half a step, infinity. */
function nearest(table: readonly { value: number; bits: number }[], value: number): number {
  let [low, high] = [0, table.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((table[middle]?.value ?? 0) <= value) low = middle;
    else high = middle;
  }
  const [below, above] = [table[low], table[high]];
  if (below === undefined || above === undefined) throw new Error("empty table");
  const [down, up] = [value - below.value, above.value - value];
  if (down === up) return (below.bits & 1) === 0 ? below.bits : above.bits;
  return down < up ? below.bits : above.bits;
}

const formats = [
  { name: "bf16", widen: bf16ToF32, narrow: f32ToBf16, largest: bf16ToF32(0x7f7f) },
  { name: "f16", widen: f16ToF32, narrow: f32ToF16, largest: f16ToF32(0x7bff) },
] as const;

describe("dtype", () => {
  for (const { name, widen, narrow, largest } of formats) {
    it(`${name}: all bit patterns survive widening and narrowing`, () => {
      for (let bits = 0; bits < 1 << 16; bits++) {
        const value = widen(bits);
        if (Number.isNaN(value)) assert.ok(Number.isNaN(widen(narrow(value))));
        else assert.equal(narrow(value), bits, `bits ${bits.toString(16)}`);
      }
    });

    it(`${name}: narrowing rounds to the nearest, ties to even, like a search among all values`, () => {
      const table = finiteValues(widen);
      fc.assert(
        fc.property(fc.float({ noNaN: true, min: 0, max: Math.fround(largest) }), (value) => {
          const bits = narrow(Math.abs(value));
          assert.equal(widen(bits), widen(nearest(table, Math.abs(value))));
          assert.equal(narrow(-Math.abs(value)), bits | 0x8000, "the sign is kept, that of zero too");
        }),
        { numRuns: 2000 },
      );
      // Halfway points, which random numbers do not meet.
      for (let i = 1; i < table.length; i += 97) {
        const [a, b] = [table[i - 1], table[i]];
        if (a === undefined || b === undefined || a.value < 0) continue;
        const middle = Math.fround((a.value + b.value) / 2);
        assert.equal(widen(narrow(middle)), widen(nearest(table, middle)), `${middle}`);
      }
    });

    it(`${name}: what lies beyond the range becomes infinity, NaN stays NaN`, () => {
      assert.equal(widen(narrow(3.4e38)), Number.POSITIVE_INFINITY);
      assert.equal(widen(narrow(Number.NEGATIVE_INFINITY)), Number.NEGATIVE_INFINITY);
      assert.ok(Number.isNaN(widen(narrow(Number.NaN))));
    });
  }

  it("bits and values of binary32 are two views of the same", () => {
    assert.equal(f32ToBits(1), 0x3f800000);
    assert.equal(bitsToF32(0xbf3239b1), -0.6961928009986877);
  });

  it("conversion refuses to turn a finite value into infinity, and says which", () => {
    const source = new Uint8Array(new Float32Array([1, 65520]).buffer);
    assert.throws(
      () => convertFloats(source, "f32", new Uint8Array(4), "f16", "model.norm.weight"),
      (error: unknown) =>
        error instanceof CheckpointError && error.code === "FLOAT_OVERFLOW" && /65520/.test(error.message),
    );
    const kept = new Uint8Array(4);
    convertFloats(new Uint8Array(new Float32Array([65519, Number.POSITIVE_INFINITY]).buffer), "f32", kept, "f16", "x");
    assert.deepEqual([...new Uint16Array(kept.buffer)], [0x7bff, 0x7c00]);
  });
});
