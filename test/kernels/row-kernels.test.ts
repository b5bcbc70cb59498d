import assert from "node:assert/strict";
import fc from "fast-check";
import { bitsToF32, type FloatDType, f32ToBf16, f32ToF16 } from "../../src/core/dtype.js";
import type { Operand } from "../../src/core/operand.js";
import type { Tensor } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { KV_CACHE_DTYPES, type KvCacheDType } from "../../src/kernels/kv-cache-dtype.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { boundCache, tensorsOf, zeroCache } from "./cache-tensors.js";
import { assertClose, bitsOf, floats, forEachIsa, integers, numbersOf, Random, scoped, zeros } from "./tensors.js";

const reference = createReferenceKernels();
/** Half the distance between 1 and the next f32: the relative error of one rounding. */
const ROUNDING = 2 ** -24;
const rowCounts = fc.integer({ min: 1, max: 5 });
const widths = fc.integer({ min: 1, max: 300 });
const dtypes = fc.constantFrom<FloatDType>("f32", "bf16", "f16");
const repeat = (count: number, value: number): number[] => Array.from({ length: count }, () => value);

/** Runs a kernel into a new f32 tensor. */
function into(
  kernels: Kernels,
  shape: readonly number[],
  use: (out: Operand, bind: (tensor: Tensor) => Operand) => void,
): Tensor {
  const out = zeros("f32", shape);
  scoped(kernels, (bind) => use(bind(out), bind));
  return out;
}

describe("native norms", () => {
  forEachIsa((kernels) => {
    const normalize = (on: Kernels, x: Tensor, weight: Tensor, epsilon: number): Tensor =>
      into(on, x.shape, (out, bind) => on.rmsNorm(out, bind(x), bind(weight), x.shape[0] ?? 0, epsilon));

    it("agree with the reference at any width", () => {
      fc.assert(
        fc.property(fc.integer(), rowCounts, widths, (seed, rows, width) => {
          const random = new Random(seed);
          const x = random.floats("f32", [rows, width], 10);
          const weight = random.floats("f32", [width]);
          const tolerance = (width / 8 + 16) * ROUNDING;
          const expected = normalize(reference, x, weight, 1e-5);
          assertClose(normalize(kernels, x, weight, 1e-5), expected, (_, value) => Math.abs(value) * tolerance);
        }),
      );
    });

    it("add the residual exactly and leave it for the next layer", () => {
      fc.assert(
        fc.property(fc.integer(), rowCounts, widths, (seed, rows, width) => {
          const random = new Random(seed);
          const [x, weight] = [random.floats("f32", [rows, width]), random.floats("f32", [width])];
          const before = random.floats("f32", [rows, width], 3);
          const run = (on: Kernels) => {
            const residual = floats("f32", before.shape, numbersOf(before));
            const out = into(on, x.shape, (to, bind) =>
              on.addRmsNorm(to, bind(residual), bind(x), bind(weight), rows, 1e-6),
            );
            return { out, residual };
          };
          const [actual, expected] = [run(kernels), run(reference)];
          assert.deepEqual(bitsOf(actual.residual), bitsOf(expected.residual));
          const tolerance = (width / 8 + 16) * ROUNDING;
          assertClose(actual.out, expected.out, (_, value) => Math.abs(value) * tolerance);
        }),
      );
    });

    it("normalize heads by themselves and leave other columns alone", () => {
      const sizes = {
        headSize: fc.integer({ min: 1, max: 130 }),
        heads: fc.integer({ min: 0, max: 3 }),
        first: fc.nat(9),
      };
      fc.assert(
        fc.property(fc.integer(), rowCounts, fc.record(sizes), (seed, rows, { headSize, heads, first }) => {
          const random = new Random(seed);
          const width = first + heads * headSize + 3;
          const before = random.floats("f32", [rows, width], 10);
          const weight = random.floats("f32", [headSize]);
          const run = (on: Kernels) => {
            const x = floats("f32", before.shape, numbersOf(before));
            scoped(on, (bind) => on.headNorm(bind(x), bind(weight), rows, first, heads, headSize, 1e-5));
            return x;
          };
          const inHead = (column: number) => column >= first && column < first + heads * headSize;
          const tolerance = (headSize / 8 + 16) * ROUNDING;
          assertClose(run(kernels), run(reference), (index, value) =>
            inHead(index % width) ? Math.abs(value) * tolerance : 0,
          );
        }),
      );
    });

    it("may write over their input", () => {
      for (const width of [1, 16, 65, 300]) {
        const random = new Random(width);
        const [x, weight] = [random.floats("f32", [3, width]), random.floats("f32", [width])];
        const expected = bitsOf(normalize(kernels, x, weight, 1e-5));
        const residual = zeros("f32", x.shape);
        const copy = floats("f32", x.shape, numbersOf(x));
        scoped(kernels, (bind) => {
          const [inPlace, sum] = [bind(x), bind(copy)];
          kernels.rmsNorm(inPlace, inPlace, bind(weight), 3, 1e-5);
          kernels.addRmsNorm(sum, bind(residual), sum, bind(weight), 3, 1e-5);
        });
        assert.deepEqual(bitsOf(x), expected);
        assert.deepEqual(bitsOf(copy), expected);
      }
    });

    it("are zero for a row of zeros and leave later rows alone", () => {
      const out = floats("f32", [2, 33], repeat(66, 5));
      scoped(kernels, (bind) => {
        const weight = bind(floats("f32", [33], repeat(33, 1)));
        kernels.rmsNorm(bind(out), bind(zeros("f32", [2, 33])), weight, 1, 1e-6);
      });
      assert.deepEqual(numbersOf(out), [...repeat(33, 0), ...repeat(33, 5)]);
    });
  });
});

describe("native rope", () => {
  forEachIsa((kernels) => {
    it("agrees with the reference for any heads and first column", () => {
      const sizes = { half: fc.integer({ min: 1, max: 70 }), heads: fc.integer({ min: 0, max: 3 }), first: fc.nat(9) };
      fc.assert(
        fc.property(fc.integer(), rowCounts, fc.record(sizes), (seed, rows, { half, heads, first }) => {
          const random = new Random(seed);
          const headSize = 2 * half;
          const before = random.floats("f32", [rows, first + heads * headSize + 5], 4);
          const table = random.floats("f32", [12, headSize]);
          const positions = integers(
            [rows],
            Array.from({ length: rows }, () => random.below(12)),
          );
          const run = (on: Kernels) => {
            const x = floats("f32", before.shape, numbersOf(before));
            scoped(on, (bind) => on.rope(bind(x), bind(positions), bind(table), rows, first, heads, headSize));
            return x;
          };
          // Two products and their sum are rounded; values are below 4.
          assertClose(run(kernels), run(reference), () => 4 * 4 * ROUNDING);
        }),
      );
    });
  });
});

describe("native siluMul", () => {
  forEachIsa((kernels) => {
    const apply = (on: Kernels, gateUp: Tensor): Tensor => {
      const [rows = 0, columns = 0] = gateUp.shape;
      return into(on, [rows, columns / 2], (out, bind) => on.siluMul(out, bind(gateUp), rows));
    };

    it("agrees with the reference at any width", () => {
      fc.assert(
        fc.property(fc.integer(), rowCounts, widths, (seed, rows, width) => {
          const gateUp = new Random(seed).floats("f32", [rows, 2 * width], 20);
          const tolerance = (_: number, value: number) => Math.abs(value) * 8 * ROUNDING + 2 ** -126;
          assertClose(apply(kernels, gateUp), apply(reference, gateUp), tolerance);
        }),
      );
    });

    it("is within 4 ulp over the whole range, and flushes only what is smaller than a normal number", () => {
      const gates = Array.from({ length: 40001 }, (_, i) => (i - 20000) / 200);
      const gateUp = floats("f32", [1, 2 * gates.length], [...gates, ...repeat(gates.length, 1)]);
      const tolerance = (_: number, value: number) => Math.abs(value) * 8 * ROUNDING + 120 * 2 ** -126;
      assertClose(apply(kernels, gateUp), apply(reference, gateUp), tolerance);
    });

    it("is right at zero, infinities and NaN", () => {
      const gates = [0, -0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, 3e38, -3e38];
      const gateUp = floats("f32", [1, 2 * gates.length], [...gates, ...repeat(gates.length, 1)]);
      const expected = [0, -0, Number.POSITIVE_INFINITY, Number.NaN, Number.NaN, Math.fround(3e38), -0];
      assert.deepEqual(numbersOf(apply(kernels, gateUp)), expected);
    });
  });
});

describe("native embedding and gatherRows", () => {
  forEachIsa((kernels) => {
    it("copy the rows the reference copies, zeros outside the shard", () => {
      fc.assert(
        fc.property(fc.integer(), rowCounts, widths, dtypes, (seed, rows, width, dtype) => {
          const random = new Random(seed);
          const table = random.floats(dtype, [6, width]);
          const ids = integers(
            [rows],
            Array.from({ length: rows }, () => random.below(20)),
          );
          const run = (on: Kernels) =>
            into(on, [rows, width], (out, bind) =>
              on.embedding(out, bind(ids), { format: "dense", matrix: bind(table) }, rows, 9),
            );
          assert.deepEqual(bitsOf(run(kernels)), bitsOf(run(reference)));
        }),
      );
    });

    it("gather rows from an index on", () => {
      const source = new Random(1).floats("f32", [6, 37]);
      const indices = integers([5], [0, 4, 5, 0, 3]);
      const run = (on: Kernels) =>
        into(on, [4, 37], (out, bind) => on.gatherRows(out, bind(source), bind(indices), 1, 3));
      const expected = [4, 5, 0].flatMap((row) => numbersOf(source).slice(row * 37, (row + 1) * 37));
      assert.deepEqual(numbersOf(run(kernels)), [...expected, ...repeat(37, 0)]);
      assert.deepEqual(bitsOf(run(reference)), bitsOf(run(kernels)));
    });
  });
});

/** Values around every boundary of the 16-bit formats, subnormals and ties among them. */
const awkward = [
  ...[0, -0, 1, -1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 65504, 65519, 65520, -65520, 1e5],
  ...[2 ** -14, 2 ** -24, 2 ** -25, 2 ** -25 + 2 ** -40, 3 * 2 ** -25, 2 ** -26, -(2 ** -24), 1023.5 * 2 ** -24],
  ...[3.4e38, -3.4e38, 2 ** -126, 2 ** -133, 2 ** -134, 3 * 2 ** -134, 2 ** -149],
  ...[Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN],
].map(Math.fround);

describe("native writeKv", () => {
  forEachIsa((kernels) => {
    const write = (
      on: Kernels,
      dtype: KvCacheDType,
      source: Tensor,
      slots: Tensor,
      kvHeads: number,
      headSize: number,
    ) => {
      const cache = zeroCache(dtype, { blocks: 4, kvHeads, headSize, blockSize: 3 });
      scoped(on, (bind) => {
        const rows = slots.shape[0] ?? 0;
        on.writeKv(boundCache(bind, cache), bind(source), bind(slots), rows, 2, 2 + kvHeads * headSize);
      });
      return tensorsOf(cache).flatMap(bitsOf);
    };

    it("puts every head where the reference puts it, rounded to the same bits", () => {
      const heads = fc.integer({ min: 1, max: 3 });
      fc.assert(
        fc.property(
          fc.integer(),
          rowCounts,
          heads,
          fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(64, 80, 128, 256)),
          fc.constantFrom(...KV_CACHE_DTYPES),
          (seed, rows, kvHeads, size, dtype) => {
            const random = new Random(seed);
            const source = random.floats("f32", [rows, 2 + 2 * kvHeads * size + 1], 100);
            const slots = integers([rows], random.permutation(12).slice(0, rows));
            const expected = write(reference, dtype, source, slots, kvHeads, size);
            assert.deepEqual(write(kernels, dtype, source, slots, kvHeads, size), expected);
          },
        ),
      );
    });

    it("rounds keys and values of any magnitude to the same codes and scales as the reference", () => {
      const number = fc.oneof(
        { weight: 6, arbitrary: fc.float({ noNaN: true, noDefaultInfinity: true }) },
        { weight: 4, arbitrary: fc.integer({ min: -254, max: 254 }).map((half) => half / 2) },
        { weight: 1, arbitrary: fc.constantFrom(...awkward.filter(Number.isFinite)) },
      );
      const vectors = fc.integer({ min: 1, max: 70 }).chain((size) => {
        const elements = fc.array(number, { minLength: 2 * size, maxLength: 2 * size });
        return elements.map((own) => ({ size, elements: own }));
      });
      fc.assert(
        fc.property(vectors, fc.constantFrom(1, 2 ** -60, 2 ** -100, 2 ** -126), ({ size, elements }, factor) => {
          const source = floats(
            "f32",
            [1, 2 + 2 * size],
            [0, 0, ...elements].map((value) => value * factor),
          );
          const expected = write(reference, "int8", source, integers([1], [7]), 1, size);
          assert.deepEqual(write(kernels, "int8", source, integers([1], [7]), 1, size), expected);
        }),
        { numRuns: 200 },
      );
    });

    it("gives codes that are whole multiples of the largest over 127, ties to even, and none to NaN and infinity", () => {
      const [size, at] = [6, 7];
      const codesAndScales = (key: number[], value: number[]) => {
        const source = floats("f32", [1, 2 + 2 * size], [0, 0, ...key, ...value]);
        const bits = write(kernels, "int8", source, integers([1], [at]), 1, size);
        // Slot 7 is offset 1 of block 2; values come after the keys of all 12 slots, scales after all values.
        const scale = (part: number) => bitsToF32(bits[2 * 12 * size + (2 * 2 + part) * 3 + 1] ?? 0);
        const keys = Array.from({ length: size }, (_, d) => bits[(2 * size + d) * 3 + 1]);
        return { keys, values: bits.slice((12 + at) * size, (13 + at) * size), scales: [scale(0), scale(1)] };
      };
      assert.deepEqual(codesAndScales([127, 0.5, 1.5, -2.5, 2.51, -0], [-254, 3, 5, 254, 0, 1]), {
        keys: [127, 0, 2, -2, 3, 0],
        values: [-127, 2, 2, 127, 0, 0],
        scales: [1, 2],
      });
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const { keys, values, scales } = codesAndScales([1, 2, bad, 4, 5, 6], [127, 1, 2, 3, 4, 5]);
        assert.deepEqual([keys, values], [repeat(size, 0), [127, 1, 2, 3, 4, 5]]);
        assert.ok(Number.isNaN(scales[0]) && scales[1] === 1, String(bad));
      }
      const tiny = 2 ** -101;
      assert.deepEqual(codesAndScales(repeat(size, tiny), repeat(size, -(2 ** -149))), {
        keys: repeat(size, 0),
        values: repeat(size, 0),
        scales: [0, 0],
      });
    });

    it("rounds to nearest even up to the ends of the range", () => {
      const size = awkward.length;
      const source = floats("f32", [1, 2 + 2 * size], [0, 0, ...awkward, ...awkward]);
      for (const [dtype, narrow, exponent] of [
        ["bf16", f32ToBf16, 0x7f80],
        ["f16", f32ToF16, 0x7c00],
      ] as const) {
        const bits = write(kernels, dtype, source, integers([1], [7]), 1, size);
        // Slot 7 is offset 1 of block 2; values come after the keys of all 12 slots.
        const keys = awkward.map((_, d) => bits[(2 * size + d) * 3 + 1]);
        const values = bits.slice((12 + 7) * size, (12 + 8) * size);
        for (const [index, received = 0] of [...keys, ...values].entries()) {
          const value = awkward[index % size] ?? 0;
          if (Number.isNaN(value)) assert.ok((received & 0x7fff) > exponent, `NaN became ${received.toString(16)}`);
          else assert.equal(received, narrow(value), `${value} as ${dtype}`);
        }
      }
    });
  });
});

describe("native argmax", () => {
  forEachIsa((kernels) => {
    const apply = (on: Kernels, logits: Tensor, columns: number, firstId = 0): number[][] => {
      const rows = logits.shape[0] ?? 0;
      const [values, ids] = [zeros("f32", [rows]), zeros("i32", [rows])];
      scoped(on, (bind) => on.argmax(bind(values), bind(ids), bind(logits), rows, columns, firstId));
      return [numbersOf(values), numbersOf(ids)];
    };

    it("agrees with the reference on ties, NaN and infinities anywhere", () => {
      const value = fc.constantFrom(0, 1, 2, -1, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY);
      fc.assert(
        fc.property(fc.array(value, { minLength: 1, maxLength: 200 }), fc.nat(3), (row, skipped) => {
          const logits = floats("f32", [1, row.length], row);
          const columns = Math.max(0, row.length - skipped);
          assert.deepEqual(apply(kernels, logits, columns, 1000), apply(reference, logits, columns, 1000));
        }),
        { numRuns: 300 },
      );
    });

    it("finds the largest value wherever it stands", () => {
      for (const columns of [1, 15, 16, 17, 63, 64, 65, 130]) {
        for (let at = 0; at < columns; at++) {
          const row = Array.from({ length: columns }, (_, i) => (i === at ? -0.5 : -1 - i));
          assert.deepEqual(apply(kernels, floats("f32", [1, columns], row), columns, 7), [[-0.5], [7 + at]]);
        }
      }
    });

    it("gives NaN and the first id wherever a NaN stands, so that no rank passes over what another one finds", () => {
      for (const columns of [1, 15, 16, 17, 63, 64, 65, 130]) {
        for (let at = 0; at < columns; at++) {
          const row = Array.from({ length: columns }, (_, i) => (i === at ? Number.NaN : i % 3));
          assert.deepEqual(apply(kernels, floats("f32", [1, columns], row), columns, 7), [[Number.NaN], [7]]);
        }
      }
    });

    it("gives -Infinity and the first id for no columns at all", () => {
      const logits = floats("f32", [2, 40], repeat(80, Number.NaN));
      const nothing = [
        [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
        [5, 5],
      ];
      assert.deepEqual(apply(kernels, logits, 0, 5), nothing);
    });
  });
});
