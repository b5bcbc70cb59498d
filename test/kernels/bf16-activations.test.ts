import assert from "node:assert/strict";
import fc from "fast-check";
import type { FloatDType } from "../../src/core/dtype.js";
import type { Tensor } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { createNativeKernels } from "../../src/kernels/native.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { assertClose, bitsOf, floats, forEachIsa, loadedAddon, numbersOf, Random, scoped, zeros } from "./tensors.js";

const kernels = createNativeKernels("bf16");
const reference = createReferenceKernels("bf16");
const f32 = createNativeKernels("f32");

interface Case {
  readonly x: Tensor;
  readonly weight: Tensor;
  readonly bias: Tensor | null;
  readonly rows: number;
}

function makeCase(seed: number, rows: number, inputs: number, outputs: number, dtype: FloatDType = "bf16"): Case {
  const random = new Random(seed);
  return {
    x: random.floats("f32", [rows, inputs]),
    weight: random.floats(dtype, [outputs, inputs]),
    bias: seed % 2 === 0 ? random.floats("f32", [outputs]) : null,
    rows,
  };
}

/** The product with the weight as the kernels prepare it. */
function apply(using: Kernels, { x, weight, bias, rows }: Case): Tensor {
  const out = zeros("f32", [rows, weight.shape[0] ?? 0]);
  scoped(using, (bind) => {
    const prepared = using.prepareLinear({ format: "dense", matrix: bind(weight) });
    using.linear(bind(out), bind(x), prepared, bias === null ? null : bind(bias), rows);
    using.releaseLinear(prepared);
  });
  return out;
}

/** What rounding every partial sum of so many terms may make of a sum. */
function roundingBound({ x, weight, bias }: Case): (index: number) => number {
  const [outputs = 0, inputs = 0] = weight.shape;
  const [xs, ws, bs] = [numbersOf(x), numbersOf(weight), bias === null ? [] : numbersOf(bias)];
  return (index) => {
    const [m, n] = [Math.floor(index / outputs), index % outputs];
    let magnitude = Math.abs(bs[n] ?? 0);
    for (let k = 0; k < inputs; k++) magnitude += Math.abs((xs[m * inputs + k] ?? 0) * (ws[n * inputs + k] ?? 0));
    return (inputs / 16 + 16) * 2 ** -24 * 1.01 * magnitude;
  };
}

describe("native linear with activations in bf16", () => {
  forEachIsa((_, isa) => {
    it("agrees with the reference at any size", () => {
      fc.assert(
        fc.property(
          fc.integer(),
          fc.integer({ min: 1, max: 40 }),
          fc.integer({ min: 1, max: 150 }),
          fc.integer({ min: 1, max: 40 }),
          (seed, rows, pairs, outputs) => {
            const sample = makeCase(seed, rows, 2 * pairs, outputs);
            assertClose(apply(kernels, sample), apply(reference, sample), roundingBound(sample));
          },
        ),
        { numRuns: 60 },
      );
    });

    it("agrees with the reference around every tile and chunk boundary", () => {
      for (const rows of [1, 2, 5, 6, 7, 13, 31, 32, 33, 67]) {
        for (const inputs of [2, 30, 32, 34, 2046, 2048, 2050, 4112]) {
          const sample = makeCase(rows, rows, inputs, 5);
          assertClose(apply(kernels, sample), apply(reference, sample), roundingBound(sample));
        }
      }
      for (const outputs of [1, 3, 4, 63, 65, 119, 121]) {
        for (const rows of [1, 7, 33]) {
          const sample = makeCase(outputs, rows, 24, outputs);
          assertClose(apply(kernels, sample), apply(reference, sample), roundingBound(sample));
        }
      }
    });

    it("gives the bits of every other instruction set, for any number of rows", () => {
      const addon = loadedAddon();
      for (const inputs of [66, 2100]) {
        const all = makeCase(inputs, 41, inputs, 13);
        addon.selectIsa("portable");
        const expected = bitsOf(apply(kernels, all));
        addon.selectIsa(isa);
        for (const rows of [1, 2, 7, 31, 32, 41]) {
          const some = bitsOf(apply(kernels, { ...all, rows }));
          assert.deepEqual(some, expected.slice(0, some.length), `${rows} rows of ${inputs} inputs`);
        }
      }
    });

    it("rounds activations to the nearest bf16, of two the even one, and keeps NaN and infinities in their row", () => {
      const x = floats("f32", [4, 2], [1 + 2 ** -8, 0, 1 + 3 * 2 ** -8, 0, Number.NaN, 0, Number.POSITIVE_INFINITY, 1]);
      const weight = floats("bf16", [1, 2], [1, 1]);
      const received = numbersOf(apply(kernels, { x, weight, bias: null, rows: 4 }));
      assert.deepEqual(received, [1, 1 + 2 ** -6, Number.NaN, Number.POSITIVE_INFINITY]);
    });

    it("leaves weights in f32 and f16, and rows of an odd number of inputs, to the kernels for f32", () => {
      for (const sample of [makeCase(1, 3, 40, 7, "f32"), makeCase(2, 3, 40, 7, "f16"), makeCase(3, 3, 41, 7)]) {
        assert.deepEqual(bitsOf(apply(kernels, sample)), bitsOf(apply(f32, sample)));
      }
    });

    it("is what auto takes where the instruction set has fast products of bf16, and nowhere else", () => {
      const sample = makeCase(5, 3, 64, 7);
      const expected = loadedAddon().bf16Pays ? kernels : f32;
      assert.deepEqual(bitsOf(apply(createNativeKernels("auto"), sample)), bitsOf(apply(expected, sample)));
    });
  });

  it("refuses a weight of another dtype or an odd number of inputs", () => {
    for (const [dtype, inputs, message] of [
      ["f32", 4, /bf16/],
      ["bf16", 3, /even number of inputs/],
    ] as const) {
      scoped(kernels, (bind) => {
        const [out, x] = [bind(zeros("f32", [1, 2])), bind(zeros("f32", [1, inputs]))];
        const weight = bind(zeros(dtype, [2, inputs]));
        assert.throws(() => loadedAddon().linearBf16(out.handle, x.handle, weight.handle, 0, 1, 0), message);
      });
    }
  });
});
