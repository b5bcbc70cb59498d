import assert from "node:assert/strict";
import fc from "fast-check";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import {
  forEachRun,
  fullRanges,
  readSlice,
  type SliceRange,
  sliceElements,
  sliceShape,
} from "../../src/checkpoint/slice.js";
import { DTYPES, type DType, dtypeBytes } from "../../src/core/dtype.js";
import { fixture } from "../fixture.js";
import { checkpointError } from "./files.js";

const elements = (shape: readonly number[]): number => shape.reduce((product, extent) => product * extent, 1);

/** A tensor in memory that records the reads, `[offset, length]`. */
function recorded(
  dtype: DType,
  shape: readonly number[],
): CheckpointTensor & { reads: [number, number][]; bytes: Uint8Array } {
  const bytes = Uint8Array.from({ length: elements(shape) * dtypeBytes(dtype) }, (_, i) => (i * 37 + (i >> 8)) & 0xff);
  const reads: [number, number][] = [];
  const read = (destination: Uint8Array, offset: number): void => {
    assert.ok(offset >= 0 && offset + destination.length <= bytes.length);
    reads.push([offset, destination.length]);
    destination.set(bytes.subarray(offset, offset + destination.length));
  };
  return { name: "w", dtype, shape, file: "memory", read, reads, bytes };
}

/** Flat indices of a slice's elements, in order, one by one. */
function indicesOf(shape: readonly number[], ranges: readonly SliceRange[]): number[] {
  let indices = [0];
  for (const [dimension, extent] of shape.entries()) {
    const { start, end } = ranges[dimension] ?? { start: 0, end: 0 };
    const next: number[] = [];
    for (const index of indices) for (let i = start; i < end; i++) next.push(index * extent + i);
    indices = next;
  }
  return indices;
}

/** How many groups of consecutive indices there are. */
function runsOf(indices: readonly number[]): number {
  return indices.filter((index, i) => i === 0 || index !== (indices[i - 1] ?? 0) + 1).length;
}

function arbitrarySlice(dimensions: number): fc.Arbitrary<{ shape: number[]; ranges: SliceRange[] }> {
  const dimension = fc.nat(6).chain((extent) =>
    fc.tuple(fc.nat(extent), fc.nat(extent), fc.boolean()).map(([a, b, whole]) => ({
      extent,
      range: whole ? { start: 0, end: extent } : { start: Math.min(a, b), end: Math.max(a, b) },
    })),
  );
  return fc.array(dimension, { minLength: dimensions, maxLength: dimensions }).map((chosen) => ({
    shape: chosen.map(({ extent }) => extent),
    ranges: chosen.map(({ range }) => range),
  }));
}

describe("a slice of a tensor", () => {
  for (const dimensions of [1, 2, 3, 4]) {
    it(`in ${dimensions}-D is what picking its elements one by one gives, in the fewest reads and not a byte more`, () => {
      fc.assert(
        fc.property(arbitrarySlice(dimensions), fc.constantFrom(...DTYPES), ({ shape, ranges }, dtype) => {
          const tensor = recorded(dtype, shape);
          const size = dtypeBytes(dtype);
          const indices = indicesOf(shape, ranges);
          const expected = indices.flatMap((index) => [...tensor.bytes.subarray(index * size, (index + 1) * size)]);
          const destination = new Uint8Array(sliceElements(ranges) * size);
          readSlice(tensor, ranges, destination);
          assert.deepEqual([...destination], expected);
          assert.equal(elements(sliceShape(ranges)), indices.length);
          assert.equal(
            tensor.reads.reduce((sum, [, length]) => sum + length, 0),
            destination.length,
          );
          assert.equal(tensor.reads.length, runsOf(indices));
        }),
        { numRuns: 500 },
      );
    });
  }

  it("of a scalar is its one element", () => {
    const tensor = recorded("f32", []);
    const destination = new Uint8Array(4);
    readSlice(tensor, [], destination);
    assert.deepEqual(destination, tensor.bytes);
  });

  it("that is the whole tensor is one read, whatever the shape", () => {
    const tensor = recorded("bf16", [3, 4, 5]);
    readSlice(tensor, fullRanges(tensor.shape), new Uint8Array(120));
    assert.deepEqual(tensor.reads, [[0, 120]]);
  });

  it("of rows, as column-parallel layers take it, is one read", () => {
    const tensor = recorded("bf16", [8, 16]);
    readSlice(
      tensor,
      [
        { start: 2, end: 5 },
        { start: 0, end: 16 },
      ],
      new Uint8Array(96),
    );
    assert.deepEqual(tensor.reads, [[64, 96]]);
  });

  it("of columns, as row-parallel layers take it, is one read a row", () => {
    const tensor = recorded("bf16", [4, 16]);
    readSlice(
      tensor,
      [
        { start: 0, end: 4 },
        { start: 8, end: 16 },
      ],
      new Uint8Array(64),
    );
    assert.deepEqual(tensor.reads, [
      [16, 16],
      [48, 16],
      [80, 16],
      [112, 16],
    ]);
  });

  it("of a part of every expert, of [experts, rows, columns], is one read an expert", () => {
    const runs: number[][] = [];
    const ranges = [
      { start: 1, end: 3 },
      { start: 2, end: 4 },
      { start: 0, end: 5 },
    ];
    forEachRun([4, 6, 5], 2, ranges, (...run) => runs.push(run));
    assert.deepEqual(runs, [
      [80, 20, 0],
      [140, 20, 20],
    ]);
  });

  it("of a real file has the bytes of that file, and counts only those as read", () => {
    const file = SafetensorsFile.open(fixture("tiny/llama/bf16/model.safetensors"));
    const tensor = file.tensors.get("model.layers.0.mlp.down_proj.weight");
    assert.ok(tensor);
    assert.deepEqual(tensor.shape, [128, 256]);
    const whole = new Uint8Array(128 * 256 * 2);
    tensor.read(whole, 0);
    const before = file.bytesRead;
    const slice = new Uint8Array(128 * 128 * 2);
    readSlice(
      tensor,
      [
        { start: 0, end: 128 },
        { start: 128, end: 256 },
      ],
      slice,
    );
    assert.equal(file.bytesRead - before, slice.length);
    for (let row = 0; row < 128; row++) {
      const expected = whole.subarray(row * 512 + 256, row * 512 + 512);
      assert.deepEqual(slice.subarray(row * 256, (row + 1) * 256), expected);
    }
    file.close();
  });

  const outside: readonly (readonly [string, readonly SliceRange[]])[] = [
    [
      "beyond the end",
      [
        { start: 0, end: 5 },
        { start: 0, end: 3 },
      ],
    ],
    [
      "before the start",
      [
        { start: -1, end: 2 },
        { start: 0, end: 3 },
      ],
    ],
    [
      "in the wrong order",
      [
        { start: 3, end: 2 },
        { start: 0, end: 3 },
      ],
    ],
    [
      "between elements",
      [
        { start: 0.5, end: 2 },
        { start: 0, end: 3 },
      ],
    ],
    [
      "that is not a number",
      [
        { start: Number.NaN, end: 2 },
        { start: 0, end: 3 },
      ],
    ],
    ["with too few dimensions", [{ start: 0, end: 2 }]],
    [
      "with too many dimensions",
      [
        { start: 0, end: 2 },
        { start: 0, end: 3 },
        { start: 0, end: 1 },
      ],
    ],
  ];
  for (const [what, ranges] of outside) {
    it(`${what} is refused before anything is read`, () => {
      const tensor = recorded("u8", [4, 3]);
      const expected = checkpointError("SLICE_OUT_OF_BOUNDS", /^w: .*shape \[4, 3\]/);
      assert.throws(() => readSlice(tensor, ranges, new Uint8Array(6)), expected);
      assert.throws(() => forEachRun([4, 3], 1, ranges, () => assert.fail(), "w"), expected);
      assert.deepEqual(tensor.reads, []);
    });
  }

  it("refuses a destination of another size", () => {
    const tensor = recorded("f16", [4, 3]);
    for (const size of [0, 11, 13, 24]) {
      assert.throws(
        () =>
          readSlice(
            tensor,
            [
              { start: 0, end: 2 },
              { start: 0, end: 3 },
            ],
            new Uint8Array(size),
          ),
        checkpointError("SLICE_SIZE_MISMATCH", /12 bytes/),
      );
    }
  });
});
