import assert from "node:assert/strict";
import { readSync } from "node:fs";
import fc from "fast-check";
import type { ReadAt } from "../../src/checkpoint/random-access-file.js";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import { dtypeBytes, isDType } from "../../src/core/dtype.js";
import { CheckpointError } from "../../src/core/errors.js";
import { safetensorsBytes, temporaryFolder } from "./files.js";

const VALID = safetensorsBytes(
  {
    __metadata__: { format: "pt" },
    "model.norm.weight": { dtype: "BF16", shape: [4], data_offsets: [0, 8] },
    "model.q.weight": { dtype: "F32", shape: [2, 3], data_offsets: [8, 32] },
    "model.q.weight.absmax": { dtype: "U8", shape: [5], data_offsets: [32, 37] },
    step: { dtype: "I64", shape: [], data_offsets: [37, 45] },
  },
  Uint8Array.from({ length: 45 }, (_, i) => i),
);
const VALID_HEADER_END = VALID.length - 45;

type Table = Readonly<Record<string, { readonly dtype: string; readonly shape: readonly number[] }>>;

/** The table of a file, or the error of opening it; no read may ask for more than the file holds. */
function open(path: string, fileBytes: number): Table | CheckpointError {
  const bounded: ReadAt = (fd, destination, offset, length, position) => {
    assert.ok(destination.length <= fileBytes && position + length <= fileBytes);
    return readSync(fd, destination, offset, length, position);
  };
  try {
    const file = SafetensorsFile.open(path, bounded);
    try {
      for (const tensor of file.tensors.values()) {
        const sizeBytes = tensor.shape.reduce((product, extent) => product * extent, dtypeBytes(tensor.dtype));
        tensor.read(new Uint8Array(sizeBytes), 0);
      }
      return Object.fromEntries([...file.tensors].map(([name, { dtype, shape }]) => [name, { dtype, shape }]));
    } finally {
      file.close();
    }
  } catch (error) {
    assert.ok(error instanceof CheckpointError, String(error));
    return error;
  }
}

/** What a reader that believes everything makes of a file. */
function believe(bytes: Uint8Array): Table {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header: Record<string, { dtype: string; shape: number[]; data_offsets: number[] }> = JSON.parse(
    Buffer.from(bytes.subarray(8, 8 + length)).toString("utf8"),
  );
  const { __metadata__, ...tensors } = header;
  const ends = Object.values(tensors).map(({ data_offsets }) => data_offsets[1] ?? 0);
  assert.equal(Math.max(0, ...ends), bytes.length - 8 - length);
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape }]) => {
      const lower = dtype.toLowerCase();
      assert.ok(isDType(lower));
      return [name, { dtype: lower, shape }];
    }),
  );
}

describe("a damaged safetensors file", () => {
  const folder = temporaryFolder();
  const flips = (last: number, first = 0) =>
    fc.array(fc.tuple(fc.integer({ min: first, max: last }), fc.integer({ min: 1, max: 255 })), {
      minLength: 1,
      maxLength: 3,
    });
  const damage = (changes: readonly (readonly [number, number])[]): Uint8Array => {
    const bytes = Uint8Array.from(VALID);
    for (const [position, mask] of changes) bytes[position] = (bytes[position] ?? 0) ^ mask;
    return bytes;
  };

  it("with flipped bytes either has exactly the table that its header says or is refused with a CheckpointError", () => {
    let refused = 0;
    fc.assert(
      fc.property(flips(VALID.length - 1), (changes) => {
        const bytes = damage(changes);
        const result = open(folder.write("a.safetensors", bytes), bytes.length);
        if (result instanceof CheckpointError) refused++;
        else assert.deepEqual(result, believe(bytes));
      }),
      { numRuns: 2000 },
    );
    assert.ok(refused > 500, `only ${refused} of 2000 were refused`);
  });

  it("with flipped bytes among the data only has the table that it had", () => {
    const table = believe(VALID);
    fc.assert(
      fc.property(flips(VALID.length - 1, VALID_HEADER_END), (changes) => {
        const bytes = damage(changes);
        assert.deepEqual(open(folder.write("a.safetensors", bytes), bytes.length), table);
      }),
    );
  });

  it("cut anywhere, or with anything behind it, is refused with a CheckpointError", () => {
    for (let length = 0; length < VALID.length; length++) {
      assert.ok(open(folder.write("a.safetensors", VALID.subarray(0, length)), length) instanceof CheckpointError);
    }
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 9 }), (rest) => {
        const bytes = Buffer.concat([VALID, rest]);
        const result = open(folder.write("a.safetensors", bytes), bytes.length);
        assert.ok(result instanceof CheckpointError && result.code === "TRAILING_BYTES");
      }),
    );
  });

  it("of random bytes behind a plausible length is refused with a CheckpointError", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.integer({ min: 0, max: 80 }), (noise, claimed) => {
        const bytes = safetensorsBytes(noise, undefined, claimed);
        assert.ok(open(folder.write("a.safetensors", bytes), bytes.length) instanceof CheckpointError);
      }),
    );
  });
});
