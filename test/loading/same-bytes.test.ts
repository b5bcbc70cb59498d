import assert from "node:assert/strict";
import fc from "fast-check";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { seemEqual } from "../../src/loading/same-bytes.js";

function tensorOf(shape: readonly number[], bytes: Uint8Array, dtype: "u8" | "i8" = "u8"): CheckpointTensor {
  const read = (destination: Uint8Array, byteOffset: number): void => {
    assert.ok(byteOffset >= 0 && byteOffset + destination.length <= bytes.length, "read out of bounds");
    destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
  };
  return { name: "x", dtype, shape, file: "memory", read };
}

describe("whether two tensors hold the same", () => {
  const MIB = 1024 * 1024;

  it("up to 1 MiB, one different byte anywhere is seen", () => {
    const sizes = fc.oneof(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: MIB }), fc.constant(MIB));
    fc.assert(
      fc.property(sizes, fc.nat(), (size, at) => {
        const a = new Uint8Array(size);
        const b = new Uint8Array(size);
        assert.ok(seemEqual(tensorOf([size], a), tensorOf([size], b)));
        b[at % size] = 1;
        assert.ok(!seemEqual(tensorOf([size], a), tensorOf([size], b)));
      }),
      { numRuns: 50 },
    );
  });

  it("beyond, at most 1 MiB of each is read, the first and the last byte among it", () => {
    const size = 5 * MIB + 3;
    let read = 0;
    const counting = (bytes: Uint8Array): CheckpointTensor => {
      const tensor = tensorOf([size], bytes);
      return {
        ...tensor,
        read: (destination, byteOffset) => {
          read += destination.length;
          tensor.read(destination, byteOffset);
        },
      };
    };
    const zeros = new Uint8Array(size);
    assert.ok(seemEqual(counting(zeros), tensorOf([size], zeros)));
    assert.ok(read <= MIB);
    for (const at of [0, size - 1]) {
      assert.ok(!seemEqual(tensorOf([size], zeros), tensorOf([size], Uint8Array.from(zeros).fill(1, at, at + 1))));
    }
  });

  it("another shape or dtype is different, and nothing is read; no elements are the same", () => {
    const unread: CheckpointTensor = { ...tensorOf([2, 3], new Uint8Array(6)), read: () => assert.fail("it was read") };
    for (const other of [tensorOf([3, 2], new Uint8Array(6)), tensorOf([6], new Uint8Array(6))]) {
      assert.ok(!seemEqual(unread, other));
    }
    assert.ok(!seemEqual(unread, tensorOf([2, 3], new Uint8Array(6), "i8")));
    assert.ok(seemEqual(tensorOf([0, 3], new Uint8Array(0)), tensorOf([0, 3], new Uint8Array(0))));
  });
});
