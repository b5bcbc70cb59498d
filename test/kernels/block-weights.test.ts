import assert from "node:assert/strict";
import fc from "fast-check";
import { bytesOf, f32Of, type Tensor } from "../../src/core/tensor.js";
import { dequantize } from "../../src/kernels/execution-format.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import {
  apply,
  type BlockWeight,
  blockings,
  bound,
  type Case,
  codesOf,
  FORMATS,
  type Format,
  makeCase,
  makeWeight,
} from "./block-weight.js";
import { assertClose, bitsOf, floats, forEachIsa, integers, numbersOf, Random, scoped, zeros } from "./tensors.js";

const reference = createReferenceKernels();

/** The values of a weight, as a dense one. */
function dense(weight: BlockWeight): Tensor {
  let values: Float32Array = new Float32Array();
  scoped(reference, (bind) => {
    values = dequantize(bound(bind, weight));
  });
  const outputs = weight.codes.shape[0] ?? 0;
  const tensor = zeros("f32", [outputs, values.length / outputs]);
  f32Of(tensor).set(values);
  return tensor;
}

function applyBlocks(kernels: Kernels, sample: Case): Tensor {
  return apply(kernels, sample, sample.weight.codes.shape[0] ?? 0, (bind) => bound(bind, sample.weight));
}

function applyDense(kernels: Kernels, sample: Case): Tensor {
  const matrix = dense(sample.weight);
  return apply(kernels, sample, matrix.shape[0] ?? 0, (bind) => ({ format: "dense", matrix: bind(matrix) }));
}

/** As in linear.test.ts: every partial sum is rounded, relative to the sum of magnitudes. Margins must stay as they are. */
function roundingBound(sample: Case): (index: number) => number {
  const matrix = dense(sample.weight);
  const [outputs = 0, inputs = 0] = matrix.shape;
  const [before, after] = sample.margins;
  const [xs, ws] = [f32Of(sample.x), f32Of(matrix)];
  const biases = sample.bias === null ? null : f32Of(sample.bias);
  return (index) => {
    const width = before + outputs + after;
    const [m, n] = [Math.floor(index / width), (index % width) - before];
    if (n < 0 || n >= outputs) return 0;
    let magnitude = Math.abs(biases?.[before + n] ?? 0);
    for (let k = 0; k < inputs; k++) magnitude += Math.abs((xs[m * inputs + k] ?? 0) * (ws[n * inputs + k] ?? 0));
    return (inputs / 8 + 16) * 2 ** -24 * magnitude;
  };
}

const anyExtents = fc.record({
  blocking: blockings,
  outputs: fc.integer({ min: 1, max: 67 }),
  rows: fc.integer({ min: 1, max: 37 }),
  minimums: fc.boolean(),
  values: fc.constantFrom("f32", "f16"),
  multiplier: fc.constantFrom(1, Math.fround(1 / 127)),
  before: fc.nat(5),
  after: fc.nat(3),
});

describe("native linear with weights of blocks of codes", () => {
  forEachIsa((kernels) => {
    for (const format of FORMATS) {
      it(`agrees with the reference at any size, inside any columns (${format})`, () => {
        fc.assert(
          fc.property(fc.integer({ min: 0 }), anyExtents, (seed, { blocking, rows, before, after, ...extents }) => {
            const [blockSize, inputs] = blocking;
            const sample = makeCase(seed, format, rows, { ...extents, blockSize, inputs }, [before, after]);
            assertClose(applyBlocks(kernels, sample), applyBlocks(reference, sample), roundingBound(sample));
          }),
          { numRuns: 60 },
        );
      });

      it(`gives the bits that the dequantized weight gives, around every boundary (${format})`, () => {
        const check = (rows: number, outputs: number, inputs: number, blockSize: number): void => {
          for (const minimums of [false, true]) {
            const multiplier = minimums ? 1 : Math.fround(1 / 127);
            const values = rows % 3 === 0 ? "f16" : "f32";
            const sample = makeCase(rows, format, rows, { outputs, inputs, blockSize, minimums, values, multiplier });
            const what = `${rows} rows, [${outputs}, ${inputs}] in blocks of ${blockSize}`;
            assert.deepEqual(bitsOf(applyBlocks(kernels, sample)), bitsOf(applyDense(kernels, sample)), what);
          }
        };
        for (const rows of [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 31, 37]) {
          for (const inputs of [16, 48, 112]) check(rows, 9, inputs, 16);
          for (const inputs of [32, 96]) check(rows, 17, inputs, 32);
          for (const inputs of [64, 192]) check(rows, 5, inputs, 64);
        }
        for (const inputs of [1008, 1024, 1040, 2064, 4112]) {
          for (const rows of [1, 3, 8]) {
            check(rows, 9, inputs, 16);
            check(rows, 9, inputs, inputs);
          }
        }
        for (const outputs of [1, 2, 3, 4, 7, 8, 15, 31, 63, 64, 65, 97, 193]) {
          for (const rows of [1, 2, 9]) check(rows, outputs, 64, 32);
        }
        // More inputs than six rows of activations have room for at once.
        for (const rows of [1, 6]) check(rows, 9, 22 * 1024 + 192, 64);
      });

      it(`gives a row the same bits alone and among any number of rows (${format})`, () => {
        for (const [inputs, blockSize] of [
          [80, 16],
          [1120, 32],
          [2112, 64],
        ] as const) {
          const all = makeCase(inputs, format, 37, { outputs: 23, inputs, blockSize, minimums: true });
          const together = bitsOf(applyBlocks(kernels, all));
          for (const rows of [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 18, 36]) {
            const x = { ...all.x, shape: [rows, inputs] };
            const some = bitsOf(applyBlocks(kernels, { ...all, x, rows }));
            assert.deepEqual(some, together.slice(0, some.length), `${rows} of 37 rows, ${inputs} inputs`);
          }
        }
      });

      it(`reads every code in its place: the identity gives the weight back (${format})`, () => {
        for (const [outputs, inputs, blockSize] of [
          [3, 16, 16],
          [11, 96, 32],
          [9, 192, 64],
          [2, 48, 48],
        ] as const) {
          const weight = makeWeight(new Random(outputs), format, { outputs, inputs, blockSize, minimums: true });
          const values = dense(weight);
          for (let first = 0; first < inputs; first += 5) {
            const rows = Math.min(5, inputs - first);
            const x = zeros("f32", [rows, inputs]);
            for (let m = 0; m < rows; m++) f32Of(x)[m * inputs + first + m] = 1;
            const out = f32Of(applyBlocks(kernels, { weight, x, bias: null, rows, margins: [0, 0] }));
            for (let i = 0; i < out.length; i++) {
              const [m, n] = [Math.floor(i / outputs), i % outputs];
              assert.equal(out[i], f32Of(values)[n * inputs + first + m]);
            }
          }
        }
      });

      it(`keeps scales and minimums that are no numbers in their own output (${format})`, () => {
        for (const rows of [1, 2, 9]) {
          const extents = { outputs: 19, inputs: 128, blockSize: 32, minimums: true };
          const sample = makeCase(4, format, rows, extents);
          const clean = numbersOf(applyBlocks(kernels, sample));
          const [scales, minimums] = [f32Of(sample.weight.scales), f32Of(sample.weight.minimums ?? sample.x)];
          scales[3 * 4] = Number.NaN;
          scales[8 * 4 + 3] = Number.POSITIVE_INFINITY;
          minimums[18 * 4 + 1] = Number.NEGATIVE_INFINITY;
          const out = numbersOf(applyBlocks(kernels, sample));
          for (const [index, value] of out.entries()) {
            const n = index % 19;
            if (n === 3) assert.ok(Number.isNaN(value));
            else if (n === 8 || n === 18) assert.ok(!Number.isFinite(value));
            else assert.equal(value, clean[index]);
          }
        }
      });
    }

    it("sums extreme codes exactly", () => {
      const cases: readonly (readonly [Format, number, number])[] = [
        ["int8", 0x80, -128],
        ["int8", 0x7f, 127],
        ["int8", 0xff, -1],
        ["code4", 0x00, -1],
        ["code4", 0xff, 2],
      ];
      const codebook = floats("f32", [16], [-1, ...Array.from({ length: 14 }, () => 0), 2]);
      for (const [format, byte, value] of cases) {
        for (const [rows, inputs] of [
          [1, 4096],
          [7, 1040],
        ] as const) {
          const blocks = [10, inputs / 16];
          const scales = floats(
            "f32",
            blocks,
            Array.from({ length: 10 * (blocks[1] ?? 0) }, () => 0.5),
          );
          const codes = codesOf(format, 10, inputs, () => byte);
          const weight = { format, codes, codebook, scales, minimums: null, blockSize: 16, multiplier: 1 };
          const x = zeros("f32", [rows, inputs]);
          f32Of(x).fill(1);
          const out = numbersOf(applyBlocks(kernels, { weight, x, bias: null, rows, margins: [0, 0] }));
          assert.ok(out.every((sum) => sum === (value * inputs) / 2));
        }
      }
    });

    it("takes int8 rows of any length that are one block", () => {
      for (const inputs of [1, 7, 15, 17, 63, 65, 100, 1023, 1025, 2055]) {
        for (const rows of [1, 2, 6, 7]) {
          for (const minimums of [false, true]) {
            const sample = makeCase(inputs, "int8", rows, { outputs: 11, inputs, blockSize: inputs, minimums });
            assert.deepEqual(bitsOf(applyBlocks(kernels, sample)), bitsOf(applyDense(kernels, sample)));
          }
        }
      }
      // What lies beyond the last code of a row must not meet its scale.
      const sample = makeCase(2, "int8", 1, { outputs: 1, inputs: 5, blockSize: 5 });
      f32Of(sample.weight.scales)[0] = Number.POSITIVE_INFINITY;
      bytesOf(sample.weight.codes).fill(1);
      f32Of(sample.x).fill(1);
      assert.deepEqual(numbersOf(applyBlocks(kernels, sample)), [Number.POSITIVE_INFINITY]);
    });

    it("computes outputs of zero inputs as the bias", () => {
      for (const format of FORMATS) {
        for (const rows of [1, 9]) {
          const empty = { outputs: 10, inputs: 0, blockSize: 16 };
          const sample = makeCase(1, format, rows, empty);
          const biases = numbersOf(sample.bias ?? sample.x);
          const expected = Array.from({ length: rows }, () => biases).flat();
          assert.deepEqual(numbersOf(applyBlocks(kernels, sample)), expected);
          assert.deepEqual(numbersOf(applyDense(kernels, sample)), expected);
        }
      }
    });
  });
});

describe("native embedding with tables of blocks of codes", () => {
  forEachIsa((kernels) => {
    it("gives the values of the format bit for bit, and zeros outside the shard", () => {
      const tables = fc.record({
        blocking: blockings,
        minimums: fc.boolean(),
        multiplier: fc.constantFrom(1, Math.fround(1 / 127)),
        format: fc.constantFrom(...FORMATS),
        tiny: fc.boolean(),
      });
      fc.assert(
        fc.property(fc.integer(), tables, (seed, { blocking: [blockSize, inputs], format, tiny, ...options }) => {
          const random = new Random(seed);
          const table = makeWeight(random, format, { outputs: 6, inputs, blockSize, ...options });
          // Products that are subnormal.
          if (tiny) f32Of(table.scales).set(numbersOf(table.scales).map((scale) => scale * 2 ** -126));
          const ids = integers(
            [8],
            Array.from({ length: 8 }, () => random.below(20)),
          );
          const run = (on: Kernels) => {
            const out = zeros("f32", [8, inputs]);
            scoped(on, (bind) => on.embedding(bind(out), bind(ids), bound(bind, table), 8, 9));
            return out;
          };
          const expected = numbersOf(ids).flatMap((id) => {
            const row = id - 9;
            if (row < 0 || row >= 6) return Array.from({ length: inputs }, () => 0);
            return bitsOf(dense(table)).slice(row * inputs, (row + 1) * inputs);
          });
          assert.deepEqual(bitsOf(run(kernels)), expected);
          assert.deepEqual(bitsOf(run(reference)), expected);
        }),
      );
    });

    it("looks up int8 rows of any length that are one block", () => {
      for (const inputs of [1, 7, 17, 100, 1025]) {
        const table = makeWeight(new Random(inputs), "int8", { outputs: 3, inputs, blockSize: inputs, minimums: true });
        const out = zeros("f32", [3, inputs]);
        const ids = integers([3], [0, 1, 2]);
        scoped(kernels, (bind) => kernels.embedding(bind(out), bind(ids), bound(bind, table), 3, 0));
        assert.deepEqual(bitsOf(out), bitsOf(dense(table)));
      }
    });
  });
});
