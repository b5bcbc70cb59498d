import assert from "node:assert/strict";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { floats, integers, numbersOf, scoped, zeros } from "./tensors.js";

const kernels = createReferenceKernels();

function assertNear(actual: readonly number[], expected: readonly number[]): void {
  assert.equal(actual.length, expected.length);
  for (const [i, value] of expected.entries()) {
    assert.ok(
      Math.abs((actual[i] ?? Number.NaN) - value) < 1e-6,
      `element ${i}: expected ${value}, received ${actual[i]}`,
    );
  }
}

describe("reference kernels", () => {
  it("multiply by the transposed weight and add the bias", () => {
    for (const dtype of ["f32", "bf16", "f16"] as const) {
      const out = zeros("f32", [2, 2]);
      scoped(kernels, (bind) => {
        const matrix = bind(floats(dtype, [2, 3], [1, 2, 3, -1, 0.5, 0]));
        const x = bind(floats("f32", [2, 3], [1, 10, 100, 2, 0, -1]));
        kernels.linear(bind(out), x, { format: "dense", matrix }, bind(floats("f32", [2], [1000, 2000])), 2);
      });
      assert.deepEqual(numbersOf(out), [1321, 2004, 999, 1998]);
    }
  });

  it("normalize by the root of the mean square", () => {
    const [out, residual] = [zeros("f32", [1, 4]), floats("f32", [1, 4], [0, 0, 0, 4])];
    scoped(kernels, (bind) => {
      const weight = bind(floats("f32", [4], [1, 2, 3, 4]));
      // Mean square of [3, 3, 3, 3] is 9; with epsilon 7, the root is 4.
      kernels.rmsNorm(bind(out), bind(floats("f32", [1, 4], [3, 3, 3, 3])), weight, 1, 7);
      assert.deepEqual(numbersOf(out), [0.75, 1.5, 2.25, 3]);
      kernels.addRmsNorm(bind(out), bind(residual), bind(floats("f32", [1, 4], [2, 2, 2, -2])), weight, 1, 0);
    });
    assert.deepEqual(numbersOf(residual), [2, 2, 2, 2]);
    assert.deepEqual(numbersOf(out), [1, 2, 3, 4]);
  });

  it("rotate each column with the one half a head further", () => {
    const x = floats("f32", [1, 6], [9, 1, 2, 3, 4, 9]);
    scoped(kernels, (bind) => {
      // Row 1: a quarter turn for the first pair, half a turn for the second.
      const table = bind(floats("f32", [2, 4], [1, 1, 0, 0, 0, -1, 1, 0]));
      kernels.rope(bind(x), bind(integers([1], [1])), table, 1, 1, 1, 4);
    });
    assert.deepEqual(numbersOf(x), [9, -3, -2, 1, -4, 9]);
  });

  it("look embeddings up, with zeros for the ids of other ranks", () => {
    const out = floats("f32", [3, 2], [7, 7, 7, 7, 7, 7]);
    scoped(kernels, (bind) => {
      const table = bind(floats("bf16", [2, 2], [1, 2, 3, 4]));
      kernels.embedding(bind(out), bind(integers([3], [11, 9, 12])), { format: "dense", matrix: table }, 3, 10);
    });
    assert.deepEqual(numbersOf(out), [3, 4, 0, 0, 0, 0]);
  });

  it("multiply silu(gate) by up", () => {
    const out = zeros("f32", [1, 3]);
    scoped(kernels, (bind) => kernels.siluMul(bind(out), bind(floats("f32", [1, 6], [0, 1, -1, 5, 2, 2])), 1));
    const logistic = 1 / (1 + Math.exp(-1));
    assertNear(numbersOf(out), [0, 2 * logistic, -2 * (1 - logistic)]);
  });

  it("choose the lowest id among the largest logits, and none where one is not a number", () => {
    const [values, ids] = [zeros("f32", [3]), zeros("i32", [3])];
    scoped(kernels, (bind) => {
      const logits = bind(floats("f32", [3, 4], [1, 3, 3, Number.NaN, -2, -1, -3, 9, 4, Number.NaN, 5, 0]));
      kernels.argmax(bind(values), bind(ids), logits, 3, 3, 100);
    });
    assert.deepEqual(
      [numbersOf(values), numbersOf(ids)],
      [
        [3, -1, Number.NaN],
        [101, 101, 100],
      ],
    );
  });

  describe("attention", () => {
    /** One sequence of `context` positions with one head of size 2 in blocks of 2, in reverse order. */
    function attend(
      keys: number[],
      values: number[],
      q: number[],
      options: { window?: number; cap?: number } = {},
    ): number[] {
      const context = keys.length / 2;
      const queries = q.length / 2;
      const blocks = Math.ceil(context / 2);
      const out = zeros("f32", [queries, 2]);
      scoped(kernels, (bind) => {
        const shape = [blocks, 1, 2, 2];
        const cache = {
          keys: bind(zeros("f32", shape)),
          values: bind(zeros("f32", shape)),
          scales: null,
          kvHeads: 1,
          headSize: 2,
          blockSize: 2,
        };
        const slots = Array.from({ length: context }, (_, p) => (blocks - 1 - Math.floor(p / 2)) * 2 + (p % 2));
        const rows = Array.from({ length: context }, (_, p) => [
          keys[2 * p] ?? 0,
          keys[2 * p + 1] ?? 0,
          values[2 * p] ?? 0,
          values[2 * p + 1] ?? 0,
        ]);
        kernels.writeKv(
          cache,
          bind(floats("f32", [context, 4], rows.flat())),
          bind(integers([context], slots)),
          context,
          0,
          2,
        );
        const batch = {
          queryStarts: bind(integers([2], [0, queries])),
          contextLengths: bind(integers([1], [context])),
          blockTables: bind(
            integers(
              [1, blocks],
              Array.from({ length: blocks }, (_, b) => blocks - 1 - b),
            ),
          ),
        };
        const kvHeadOf = bind(integers([1], [0]));
        const { window = 0, cap = 0 } = options;
        const heads = { heads: 1, kvHeads: 1, kvHeadOf, headSize: 2, scale: 0.5, slidingWindow: window, softCap: cap };
        kernels.attention(bind(out), bind(floats("f32", [queries, 2], q)), cache, batch, 1, heads);
      });
      return numbersOf(out);
    }

    const values = [1, 10, 2, 20, 3, 30, 4, 40, 6, 60];
    const same = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    it("averages the values of equal scores over what each query may see", () => {
      assertNear(attend(same, values, [1, 1, 1, 1, 1, 1]), [2, 20, 2.5, 25, 3.2, 32]);
    });

    it("forgets what lies outside the window", () => {
      assertNear(attend(same, values, [1, 1, 1, 1], { window: 2 }), [3.5, 35, 5, 50]);
    });

    it("weighs values by the softmax of scaled scores", () => {
      // Scores 0.5 * 2 * ln 3 and 0 give weights 3/4 and 1/4.
      assertNear(attend([Math.log(3), 0, 0, 0], [8, 0, 4, 1], [2, 0]), [7, 0.25]);
    });

    it("bounds scores by the soft cap", () => {
      const weight = 1 / (1 + Math.exp(-2 * Math.tanh(5)));
      assertNear(attend([10, 0, 0, 0], [1, 0, 0, 0], [2, 0], { cap: 2 }), [weight, 0]);
    });
  });

  it("refuse operands that are released, too short or of another dtype", () => {
    scoped(kernels, (bind) => {
      const [short, wide, ids] = [bind(zeros("f32", [1, 4])), bind(zeros("f32", [2, 5])), bind(zeros("i32", [4]))];
      const weight = bind(zeros("f32", [4]));
      const failures: readonly (() => void)[] = [
        () => kernels.rmsNorm(short, short, weight, 2, 0),
        () => kernels.rmsNorm(wide, short, weight, 1, 0),
        () => kernels.rmsNorm(short, short, ids, 1, 0),
        () => kernels.linear(short, short, { format: "dense", matrix: wide }, null, 1),
        () => kernels.embedding(short, weight, { format: "dense", matrix: short }, 1, 0),
        () => kernels.gatherRows(short, short, bind(integers([1], [1])), 0, 1),
      ];
      for (const fail of failures) assert.throws(fail, { name: "InternalError" });
    });
    const released = kernels.bind(zeros("f32", [4]));
    kernels.release(released);
    assert.throws(() => kernels.rmsNorm(released, released, released, 1, 0), /not bound/);
    assert.throws(() => kernels.release(released), /not bound/);
  });
});
