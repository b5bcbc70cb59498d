/** The quantizers, against what bitsandbytes wrote, and against slow ones that follow its rules one element at a time. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { bf16ToF32, type CheckpointTensor, f16ToF32, f32ToF16 } from "shardloom/plugin";
import { CODEBOOKS, type FourBitType } from "../src/codebooks.js";
import { expandAbsmax } from "../src/double-quant.js";
import { formatQuantState, quantizeAbsmax, quantizeRows } from "../src/index.js";
import { blockCount, encode, findAbsmax, packedBytes } from "../src/quantize-4bit.js";
import { bytesOfTensor, hasCode, openFixture, randomValues, tensorOf } from "./fixture.js";

const { fround } = Math;

function bf16Values(tensor: CheckpointTensor): Float32Array {
  assert.equal(tensor.dtype, "bf16");
  return Float32Array.from(new Uint16Array(bytesOfTensor(tensor).buffer), bf16ToF32);
}

function quantize(
  type: FourBitType,
  values: Float32Array,
  blockSize: number,
): { codes: Uint8Array; absmax: Float32Array } {
  const absmax = new Float32Array(blockCount(values.length, blockSize));
  const codes = new Uint8Array(packedBytes(values.length));
  findAbsmax(values, blockSize, absmax, { tensor: "X", firstElement: 0 });
  encode(type, values, blockSize, absmax, codes);
  return { codes, absmax };
}

/** Nearest code in f32, the lower value of two equally near; FP4's zero is code 8 above 0 and code 0 up to it. */
function nearestCode(type: FourBitType, scaled: number): number {
  const ascending = [...CODEBOOKS[type].entries()].sort(([a, x], [b, y]) => x - y || a - b);
  let best = 0;
  for (let i = 0; i + 1 < ascending.length; i++) {
    const middle = fround(fround((ascending[i]?.[1] ?? 0) + (ascending[i + 1]?.[1] ?? 0)) / 2);
    if (scaled > middle) best = i + 1;
  }
  return ascending[best]?.[0] ?? 0;
}

function quantizeSlowly(
  type: FourBitType,
  values: Float32Array,
  blockSize: number,
): { codes: Uint8Array; absmax: Float32Array } {
  const absmax: number[] = [];
  const codes: number[] = [];
  for (let start = 0; start < values.length; start += blockSize) {
    const block = [...values.subarray(start, start + blockSize)];
    const largest = Math.max(...block.map(Math.abs));
    absmax.push(largest);
    for (const value of block) {
      const scaled = block.length === blockSize ? fround(value * fround(1 / largest)) : fround(value / largest);
      codes.push(nearestCode(type, largest === 0 ? 0 : scaled));
    }
  }
  if (codes.length % 2 === 1) codes.push(nearestCode(type, 0));
  const packed = Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => ((codes[2 * i] ?? 0) << 4) | (codes[2 * i + 1] ?? 0),
  );
  return { codes: packed, absmax: Float32Array.from(absmax) };
}

describe("quantizing as bitsandbytes does, byte for byte", () => {
  const models = {
    llama: ["nf4", "nf4-dq", "fp4"],
    "llama-uneven": ["nf4", "nf4-skip"],
    qwen2: ["nf4"],
    qwen3: ["nf4"],
    mistral: ["nf4"],
    phi3: ["nf4"],
  };
  for (const [model, variants] of Object.entries(models)) {
    for (const variant of variants) {
      it(`${model}: codes, absmax, nested absmax and state of ${variant} are those of the bf16 model quantized here`, () => {
        const source = openFixture(`${model}/bf16`);
        const stored = openFixture(`${model}/${variant}`);
        const type = variant.startsWith("fp4") ? "fp4" : "nf4";
        let weights = 0;
        for (const tensor of stored.tensors.values()) {
          if (tensor.dtype !== "u8" || !tensor.name.endsWith(".weight")) continue;
          weights++;
          const expect = (suffix: string, received: ArrayBufferView): void => {
            const expected = bytesOfTensor(tensorOf(stored, `${tensor.name}${suffix}`));
            const bytes = new Uint8Array(received.buffer, received.byteOffset, received.byteLength);
            assert.equal(Buffer.compare(bytes, expected), 0, `${tensor.name}${suffix}`);
          };
          const original = tensorOf(source, tensor.name);
          const { codes, absmax } = quantize(type, bf16Values(original), 64);
          expect("", codes);
          const nested = variant.endsWith("-dq") ? quantizeAbsmax(absmax) : null;
          expect(".absmax", nested?.codes ?? absmax);
          if (nested !== null) expect(".nested_absmax", nested.absmax);
          const { shape } = original;
          const state = { type, blockSize: 64, dtype: "bfloat16", shape } as const;
          const nestedState = nested === null ? null : { blockSize: 256, offset: nested.offset };
          expect(`.quant_state.bitsandbytes__${type}`, formatQuantState({ ...state, nested: nestedState }));
        }
        assert.ok(weights >= 8);
      });
    }
  }

  it("llama: codes and row scales of int8", () => {
    const source = openFixture("llama/bf16");
    const stored = openFixture("llama/int8");
    const weights = [...stored.tensors.values()].filter(({ dtype }) => dtype === "i8");
    assert.equal(weights.length, 14);
    for (const tensor of weights) {
      const [rows = 0, columns = 0] = tensor.shape;
      const codes = new Int8Array(rows * columns);
      const scales = new Float32Array(rows);
      quantizeRows(bf16Values(tensorOf(source, tensor.name)), columns, codes, scales, tensor.name, 0);
      assert.deepEqual(new Uint8Array(codes.buffer), bytesOfTensor(tensor));
      const expected = bytesOfTensor(tensorOf(stored, tensor.name.replace(/weight$/, "SCB")));
      assert.deepEqual(new Uint8Array(scales.buffer), expected);
    }
  });
});

describe("quantizing to 4 bits", () => {
  const types = fc.constantFrom<FourBitType>("nf4", "fp4");
  const blockSizes = fc.constantFrom(32, 64, 128, 256, 4096);

  it("property: as one element at a time, whatever the block size and however the tensor ends", () => {
    fc.assert(
      fc.property(types, blockSizes, fc.integer({ min: 1, max: 700 }), fc.integer(), (type, blockSize, count, seed) => {
        const values = randomValues(count, seed);
        assert.deepEqual(quantize(type, values, blockSize), quantizeSlowly(type, values, blockSize));
      }),
      { numRuns: 300 },
    );
  });

  it("property: a tensor quantized in pieces of whole blocks is the tensor quantized whole", () => {
    fc.assert(
      fc.property(types, fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 200 }), (type, blocks, rest) => {
        const values = randomValues(blocks * 64 + rest, blocks);
        const whole = quantize(type, values, 64);
        const pieces = [
          quantize(type, values.subarray(0, blocks * 64), 64),
          quantize(type, values.subarray(blocks * 64), 64),
        ];
        assert.deepEqual(
          pieces.flatMap(({ codes }) => [...codes]),
          [...whole.codes],
        );
        assert.deepEqual(
          pieces.flatMap(({ absmax }) => [...absmax]),
          [...whole.absmax],
        );
      }),
    );
  });

  for (const type of ["nf4", "fp4"] as const) {
    it(`${type}: around every midpoint the code changes just above it`, () => {
      const ascending = [...CODEBOOKS[type]].sort((a, b) => a - b);
      const middles = ascending.slice(1).map((value, i) => fround(fround(value + (ascending[i] ?? 0)) / 2));
      const step = (value: number, by: number): number => {
        const bits = new Int32Array(Float32Array.of(value).buffer);
        bits[0] = (bits[0] ?? 0) + (value < 0 ? -by : by);
        return new Float32Array(bits.buffer)[0] ?? 0;
      };
      for (const middle of middles.filter((value) => value !== 0)) {
        const values = Float32Array.from([1, step(middle, -1), middle, step(middle, 1), ...new Array(60).fill(0)]);
        assert.deepEqual(quantize(type, values, 64), quantizeSlowly(type, values, 64), `${middle}`);
      }
    });
  }

  it("divides by absmax in the last, short block, and multiplies by its reciprocal in the others", () => {
    // Values beside midpoints, for which the two give other codes.
    const middles = [...CODEBOOKS.nf4].slice(1).map((value, i) => fround(fround(value + (CODEBOOKS.nf4[i] ?? 0)) / 2));
    let differing = 0;
    for (let i = 0; i < 3000; i++) {
      const scale = fround(0.5 + i / 7000);
      const value = fround((middles[i % 15] ?? 0) * scale);
      const divided = nearestCode("nf4", fround(value / scale));
      const multiplied = nearestCode("nf4", fround(value * fround(1 / scale)));
      if (divided === multiplied) continue;
      differing++;
      const zeros = new Array<number>(62).fill(0);
      assert.equal((quantize("nf4", Float32Array.from([value, scale]), 64).codes[0] ?? 0) >> 4, divided);
      assert.equal((quantize("nf4", Float32Array.from([value, scale, ...zeros]), 64).codes[0] ?? 0) >> 4, multiplied);
    }
    assert.ok(differing > 10, `${differing}`);
  });

  it("fp4: small positive values take code 8, zero and small negative ones code 0", () => {
    const values = Float32Array.from([1, 0.0026, -0.0026, 0, -0, 2e-30, ...new Array(58).fill(0)]);
    assert.deepEqual([...quantize("fp4", values, 64).codes.subarray(0, 3)], [0x38, 0x00, 0x08]);
  });

  it("a block of zeros keeps absmax 0 and has the code of 0", () => {
    const zeros = new Float32Array(64 + 5);
    const nf4 = quantize("nf4", zeros, 64);
    assert.deepEqual([...nf4.absmax], [0, 0]);
    assert.ok(nf4.codes.every((byte) => byte === 0x77));
    assert.ok(quantize("fp4", zeros, 64).codes.every((byte) => byte === 0));
  });

  it("a block whose absmax has no finite reciprocal gives finite values all the same", () => {
    const values = new Float32Array(64).fill(0);
    values[0] = 2 ** -140;
    const { codes, absmax } = quantize("nf4", values, 64);
    assert.equal(absmax[0], 2 ** -140);
    assert.ok(codes.every((byte) => byte >> 4 >= 7 && (byte & 15) >= 7));
  });

  it("refuses infinities and NaN, naming tensor and element", () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const values = new Float32Array(200).fill(0.5);
      values[130] = value;
      const range = { tensor: "X.weight", firstElement: 1000 };
      assert.throws(
        () => findAbsmax(values, 64, new Float32Array(4), range),
        (error: unknown) => hasCode("NON_FINITE_WEIGHT", "X.weight")(error) && /element 1130 is/.test(String(error)),
      );
    }
  });
});

describe("quantizing absmax", () => {
  it("property: near the map's nearest entry, and each value's entry is that of its group", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 700 }), fc.integer(), (count, seed) => {
        const absmax = randomValues(count, seed).map((value) => Math.abs(value) + 0.01);
        const nested = quantizeAbsmax(absmax);
        assert.equal(nested.offset, fround(absmax.reduce((sum, value) => sum + value, 0) / count));
        assert.equal(nested.absmax.length, Math.ceil(count / 256));
        const values = new Float32Array(count);
        const map = quantizeMap();
        expandAbsmax(nested, map, 256, values);
        values.forEach((value, i) => {
          const scale = nested.absmax[Math.floor(i / 256)] ?? 0;
          const difference = fround((absmax[i] ?? 0) - nested.offset);
          const error = Math.min(...[...map].map((entry) => Math.abs(entry * scale - difference)));
          // The table has steps of 2 / 65535, by half of which the nearest may be missed; sums round as well.
          assert.ok(Math.abs(value - (absmax[i] ?? 0)) <= error + scale * 3.2e-5 + 1e-7, `${i}`);
        });
      }),
      { numRuns: 60 },
    );
  });

  it("equal absmax, one or many, decode to themselves", () => {
    for (const count of [1, 2, 300]) {
      const absmax = new Float32Array(count).fill(0.125);
      const nested = quantizeAbsmax(absmax);
      const values = new Float32Array(count);
      expandAbsmax(nested, quantizeMap(), 256, values);
      assert.deepEqual(values, absmax);
      assert.ok(nested.codes.every((code) => code === 0));
    }
  });

  function quantizeMap(): Float32Array {
    const name = "model.layers.0.mlp.down_proj.weight.nested_quant_map";
    return new Float32Array(bytesOfTensor(tensorOf(openFixture("llama/nf4-dq"), name)).buffer);
  }
});

describe("quantizing to int8", () => {
  it("property: as one element at a time", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 90 }),
        fc.integer(),
        (rows, columns, seed) => {
          const values = randomValues(rows * columns, seed);
          const rounded = Float32Array.from(values, (value) => f16ToF32(f32ToF16(value)));
          const scales = Float32Array.from({ length: rows }, (_, row) => {
            return Math.max(...rounded.subarray(row * columns, (row + 1) * columns).map(Math.abs));
          });
          const even = (value: number): number => {
            const floor = Math.floor(value);
            return value - floor === 0.5 ? floor + (floor % 2 === 0 ? 0 : 1) : Math.round(value);
          };
          const expected = Int8Array.from(rounded, (value, i) => {
            const scale = scales[Math.floor(i / columns)] ?? 0;
            return scale === 0 ? 0 : even(fround(value * fround(fround(1 / scale) * 127)));
          });
          const codes = new Int8Array(rows * columns).fill(99);
          const received = new Float32Array(rows);
          quantizeRows(values, columns, codes, received, "X", 0);
          assert.deepEqual([received, codes], [scales, expected]);
        },
      ),
    );
  });

  it("a row of zeros has scale 0 and codes 0", () => {
    const codes = new Int8Array(4).fill(9);
    const scales = new Float32Array(2);
    quantizeRows(Float32Array.of(0, -0, 1, -1), 2, codes, scales, "X", 0);
    assert.deepEqual(
      [[...codes], [...scales]],
      [
        [0, 0, 127, -127],
        [0, 1],
      ],
    );
  });

  it("refuses what f16 cannot hold, and what is no number, naming tensor and element", () => {
    const refused: [number, string][] = [
      [65520, "FLOAT_OVERFLOW"],
      [-1e30, "FLOAT_OVERFLOW"],
      [Number.NaN, "NON_FINITE_WEIGHT"],
      [Number.NEGATIVE_INFINITY, "NON_FINITE_WEIGHT"],
    ];
    for (const [value, code] of refused) {
      const quantizing = () =>
        quantizeRows(Float32Array.of(1, 2, 3, value), 2, new Int8Array(4), new Float32Array(2), "X.weight", 7);
      assert.throws(
        quantizing,
        (error: unknown) => hasCode(code, "X.weight")(error) && /element 17 is/.test(String(error)),
      );
    }
    assert.doesNotThrow(() => quantizeRows(Float32Array.of(65519), 1, new Int8Array(1), new Float32Array(1), "X", 0));
  });
});
