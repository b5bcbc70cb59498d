import assert from "node:assert/strict";
import { seededRandom } from "../../bench/models/weight-types.js";
import { relativeError } from "../../bench/operations/closeness.js";
import { LINEAR_FORMATS } from "../../bench/operations/linear-formats.js";
import { codes, floats } from "../../bench/operations/random-tensors.js";
import { bytesOf, f32Of } from "../../src/core/tensor.js";
import { dequantize } from "../../src/kernels/execution-format.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";

describe("made-up operands of benches", () => {
  it("have values in every place, the same for the same seed", () => {
    const make = () => f32Of(floats("f32", [700, 200], 0.5, seededRandom(1)));
    const values = make();
    assert.ok(values.every((value) => value !== 0 && Math.abs(value) <= 0.5));
    assert.deepEqual(values, make());
    const bytes = bytesOf(codes("u8", [512, 400], seededRandom(2)));
    assert.ok(new Set(bytes.subarray(-1000)).size > 200, "the end is filled as the beginning is");
  });

  it("are weights whose values and bytes are those of their formats", () => {
    const bytesPerWeight = LINEAR_FORMATS.map((format) => {
      const kernels = createReferenceKernels();
      const { weight, bytes } = format.make(kernels, 32, 128, seededRandom(3));
      assert.ok(dequantize(weight).every((value) => Number.isFinite(value) && Math.abs(value) < 8));
      return [format.name, bytes / (32 * 128)];
    });
    assert.deepEqual(Object.fromEntries(bytesPerWeight), {
      f32: 4,
      bf16: 2,
      f16: 2,
      NF4: 0.5 + 4 / 64,
      Q4_0: 0.5 + 2 / 32,
      Q4_1: 0.5 + 4 / 32,
      Q8_0: 1 + 2 / 32,
      "LLM.int8": 1 + 4 / 128,
    });
  });
});

describe("the check before the clock", () => {
  it("sees a single wrong value, and a value that is none", () => {
    const right = Float32Array.from([1, 2, 2]);
    assert.equal(relativeError(right, right), 0);
    assert.equal(relativeError(Float32Array.from([1, 2, -1]), right), 1);
    assert.ok(Number.isNaN(relativeError(Float32Array.from([1, 2, Number.NaN]), right)));
    assert.ok(Number.isNaN(relativeError(Float32Array.from([1, 2]), right)), "a value is missing");
  });
});
