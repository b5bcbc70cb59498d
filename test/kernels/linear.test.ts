import assert from "node:assert/strict";
import fc from "fast-check";
import type { FloatDType } from "../../src/core/dtype.js";
import type { Tensor } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { assertClose, bitsOf, floats, forEachIsa, numbersOf, Random, scoped, zeros } from "./tensors.js";

const FLOATS: readonly FloatDType[] = ["f32", "bf16", "f16"];
const dtypes = fc.constantFrom(...FLOATS);

interface Case {
  readonly x: Tensor;
  readonly weight: Tensor;
  readonly bias: Tensor | null;
  readonly rows: number;
}

function makeCase(seed: number, rows: number, inputs: number, outputs: number, dtype: FloatDType, bias = true): Case {
  const random = new Random(seed);
  return {
    x: random.floats("f32", [rows, inputs]),
    weight: random.floats(dtype, [outputs, inputs]),
    bias: bias ? random.floats("f32", [outputs]) : null,
    rows,
  };
}

function apply(kernels: Kernels, { x, weight, bias, rows }: Case): Tensor {
  const out = zeros("f32", [rows, weight.shape[0] ?? 0]);
  scoped(kernels, (bind) => {
    const matrix = bind(weight);
    kernels.linear(bind(out), bind(x), { format: "dense", matrix }, bias === null ? null : bind(bias), rows);
  });
  return out;
}

/** Rows `[begin, end)` of a matrix, as a tensor over the same memory. */
function rowsOf(matrix: Tensor, begin: number, end: number): Tensor {
  const columns = matrix.shape[1] ?? 0;
  const elementBytes = matrix.dtype === "f32" ? 4 : 2;
  return { ...matrix, shape: [end - begin, columns], byteOffset: matrix.byteOffset + begin * columns * elementBytes };
}

/**
 * The largest error that summing in f32 may make: every partial sum of at most inputs / 8 terms, and the few that fold
 * them, is rounded, relative to the sum of magnitudes.
 */
function roundingBound({ x, weight, bias }: Case): (index: number) => number {
  const [outputs = 0, inputs = 0] = weight.shape;
  const [xs, ws, bs] = [numbersOf(x), numbersOf(weight), bias === null ? [] : numbersOf(bias)];
  return (index) => {
    const [m, n] = [Math.floor(index / outputs), index % outputs];
    let magnitude = Math.abs(bs[n] ?? 0);
    for (let k = 0; k < inputs; k++) magnitude += Math.abs((xs[m * inputs + k] ?? 0) * (ws[n * inputs + k] ?? 0));
    return (inputs / 8 + 16) * 2 ** -24 * magnitude;
  };
}

const reference = createReferenceKernels();

function expectReference(kernels: Kernels, sample: Case): void {
  assertClose(apply(kernels, sample), apply(reference, sample), roundingBound(sample));
}

describe("native linear", () => {
  forEachIsa((kernels) => {
    it("agrees with the reference at any size", () => {
      const sizes = [
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 300 }),
        fc.integer({ min: 1, max: 40 }),
      ] as const;
      fc.assert(
        fc.property(fc.integer(), ...sizes, dtypes, fc.boolean(), (seed, rows, inputs, outputs, dtype, bias) => {
          expectReference(kernels, makeCase(seed, rows, inputs, outputs, dtype, bias));
        }),
        { numRuns: 150 },
      );
    });

    for (const dtype of FLOATS) {
      it(`agrees with the reference around every tile and chunk boundary (${dtype})`, () => {
        for (const rows of [1, 2, 3, 4, 5, 6, 7, 12, 13, 31, 32, 33, 47, 48, 49]) {
          for (const inputs of [1, 15, 16, 17, 31, 33])
            expectReference(kernels, makeCase(rows, rows, inputs, 9, dtype));
        }
        for (const inputs of [1023, 1024, 1025, 2048, 2055]) {
          for (const rows of [1, 3, 8, 50]) expectReference(kernels, makeCase(inputs, rows, inputs, 5, dtype));
        }
        for (const outputs of [1, 2, 3, 63, 64, 65, 119, 120, 121, 241]) {
          for (const rows of [1, 7, 50]) expectReference(kernels, makeCase(outputs, rows, 24, outputs, dtype));
        }
      });
    }

    it("gives a row the same bits alone and among any number of rows", () => {
      for (const dtype of FLOATS) {
        for (const inputs of [7, 64, 100, 1024, 2100]) {
          const all = makeCase(inputs, 53, inputs, 23, dtype);
          const together = bitsOf(apply(kernels, all));
          for (const rows of [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 31, 32, 33, 47, 48, 49]) {
            const some = bitsOf(apply(kernels, { ...all, x: rowsOf(all.x, 0, rows), rows }));
            assert.deepEqual(some, together.slice(0, some.length), `${rows} of 53 rows, ${inputs} inputs, ${dtype}`);
          }
        }
      }
    });

    it("gives an output the same bits whatever part of the outputs is computed", () => {
      for (const rows of [1, 2, 5, 9, 50]) {
        const all = makeCase(rows, rows, 1100, 101, "bf16", false);
        const whole = numbersOf(apply(kernels, all));
        for (const [begin, end] of [
          [0, 1],
          [1, 38],
          [38, 101],
        ] as const) {
          const part = numbersOf(apply(kernels, { ...all, weight: rowsOf(all.weight, begin, end) }));
          for (let m = 0; m < rows; m++) {
            const width = end - begin;
            assert.deepEqual(part.slice(m * width, (m + 1) * width), whole.slice(m * 101 + begin, m * 101 + end));
          }
        }
      }
    });

    it("computes with subnormal numbers as exactly as with others", () => {
      const x = floats("f32", [1, 3], [2 ** -100, 2 ** 20, 1]);
      const weight = floats("f16", [1, 3], [2 ** -24, 2 ** -24, 0]);
      assert.deepEqual(numbersOf(apply(kernels, { x, weight, bias: null, rows: 1 })), [
        Math.fround(2 ** -124 + 2 ** -4),
      ]);
      const tiny = floats("f32", [1, 1], [2 ** -140]);
      const one = floats("bf16", [1, 1], [2]);
      assert.deepEqual(numbersOf(apply(kernels, { x: tiny, weight: one, bias: null, rows: 1 })), [2 ** -139]);
    });

    it("keeps NaN and infinities in their own row and column", () => {
      for (const rows of [2, 9, 50]) {
        const sample = makeCase(3, rows, 70, 6, "f32");
        const xs = numbersOf(sample.x);
        xs[70 + 69] = Number.NaN;
        const ws = numbersOf(sample.weight);
        ws[2 * 70 + 5] = Number.POSITIVE_INFINITY;
        const spoiled = { ...sample, x: floats("f32", [rows, 70], xs), weight: floats("f32", [6, 70], ws) };
        const out = numbersOf(apply(kernels, spoiled));
        const clean = numbersOf(apply(kernels, sample));
        for (const [index, value] of out.entries()) {
          const [m, n] = [Math.floor(index / 6), index % 6];
          if (m === 1) assert.ok(Number.isNaN(value));
          else if (n === 2) assert.ok(!Number.isFinite(value));
          else assert.equal(value, clean[index]);
        }
      }
    });

    it("writes no row beyond those it was asked for", () => {
      const sample = makeCase(5, 9, 40, 11, "bf16");
      const out = floats(
        "f32",
        [9, 11],
        Array.from({ length: 99 }, () => 7),
      );
      scoped(kernels, (bind) => {
        const weight = { format: "dense", matrix: bind(sample.weight) } as const;
        kernels.linear(bind(out), bind(sample.x), weight, null, 0);
        assert.ok(numbersOf(out).every((value) => value === 7));
        kernels.linear(bind(out), bind(sample.x), weight, null, 8);
      });
      assert.ok(
        numbersOf(out)
          .slice(88)
          .every((value) => value === 7),
      );
    });
  });
});
