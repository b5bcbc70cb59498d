import assert from "node:assert/strict";
import fc from "fast-check";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { convertedTensor } from "../../src/checkpoint/converted-tensor.js";
import { convertFloats, type DType, dtypeBytes, type FloatDType } from "../../src/core/dtype.js";
import { CheckpointError } from "../../src/core/errors.js";

function tensorOf(dtype: DType, bytes: Uint8Array): CheckpointTensor {
  return {
    name: "x",
    dtype,
    shape: [bytes.length / dtypeBytes(dtype)],
    file: "memory",
    read: (destination, byteOffset) => {
      assert.ok(byteOffset >= 0 && byteOffset + destination.length <= bytes.length);
      destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
    },
  };
}

function converted(values: Float32Array, from: FloatDType, to: FloatDType): { source: Uint8Array; whole: Uint8Array } {
  const wide = new Uint8Array(values.buffer);
  const source = new Uint8Array(values.length * dtypeBytes(from));
  convertFloats(wide, "f32", source, from, "x");
  const whole = new Uint8Array(values.length * dtypeBytes(to));
  convertFloats(source, from, whole, to, "x");
  return { source, whole };
}

const dtype = fc.constantFrom<FloatDType>("f32", "bf16", "f16");

describe("a tensor converted while it is read", () => {
  it("has at every byte range what the whole has there", () => {
    const values = fc.float32Array({ min: -1000, max: 1000, noNaN: true, minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(values, dtype, dtype, fc.nat(), fc.nat(), (floats, from, to, a, b) => {
        const { source, whole } = converted(Float32Array.from(floats), from, to);
        const tensor = convertedTensor(tensorOf(from, source), to);
        assert.equal(tensor.dtype, to);
        const start = a % whole.length;
        const end = start + (b % (whole.length - start + 1));
        const out = new Uint8Array(end - start);
        tensor.read(out, start);
        assert.deepEqual(out, whole.subarray(start, end));
      }),
    );
  });

  it("is converted in pieces where it is long", () => {
    const { source, whole } = converted(
      Float32Array.from({ length: 200_001 }, (_, i) => i / 7),
      "f32",
      "bf16",
    );
    const out = new Uint8Array(whole.length - 3);
    convertedTensor(tensorOf("f32", source), "bf16").read(out, 1);
    assert.deepEqual(out, whole.subarray(1, -2));
  });

  it("is the tensor itself where there is nothing to convert", () => {
    const [same, integers] = [tensorOf("bf16", new Uint8Array(4)), tensorOf("u8", new Uint8Array(4))];
    assert.equal(convertedTensor(same, "bf16"), same);
    assert.equal(convertedTensor(integers, "bf16"), integers);
  });

  it("refuses values that do not fit, and bytes that it does not have", () => {
    const tensor = convertedTensor(tensorOf("f32", new Uint8Array(Float32Array.of(1, 1e6).buffer)), "f16");
    assert.throws(
      () => tensor.read(new Uint8Array(4), 0),
      (error) => error instanceof CheckpointError && error.code === "FLOAT_OVERFLOW" && error.details.tensor === "x",
    );
    assert.throws(() => tensor.read(new Uint8Array(2), 3), RangeError);
    assert.throws(() => tensor.read(new Uint8Array(1), -1), RangeError);
  });
});
