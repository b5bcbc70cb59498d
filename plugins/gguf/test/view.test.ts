import assert from "node:assert/strict";
import fc from "fast-check";
import { type Checkpoint, type CheckpointTensor, dtypeBytes, type Range } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { fixturePath } from "./fixture.js";
import { between, loadMatrix, matrices, matrixOf, quantizationOf } from "./sharding.js";

let checkpoint: Checkpoint;
before(async () => {
  checkpoint = await createGgufLoader().open(fixturePath("formats.gguf"));
});
after(() => checkpoint.close());

describe("what is read of a GGUF file to shard it", () => {
  /** Bytes that loading one rank takes. */
  async function bytesOf(load: (fresh: Checkpoint) => void): Promise<number> {
    const fresh = await createGgufLoader().open(fixturePath("formats.gguf"));
    try {
      load(fresh);
      return fresh.bytesRead;
    } finally {
      fresh.close();
    }
  }

  it("is each block of a rank's rows once, for codes, scales and minimums together", async () => {
    for (const [rank, rows] of [8, 5, 3].entries()) {
      const split = between(0, 8, 13, 16);
      const bytes = await bytesOf((fresh) => void loadMatrix(fresh, matrices.Q4_K, "column", split, rank));
      assert.equal(bytes, rows * 144);
    }
  });

  it("is each block that a rank's columns touch once", async () => {
    const split = between(0, 40, 96);
    const touched = [2, 2];
    for (const [rank, blocks] of touched.entries()) {
      const bytes = await bytesOf((fresh) => void loadMatrix(fresh, matrices.Q4_1, "row", split, rank));
      assert.equal(bytes, 4 * blocks * 20, `rank ${rank}`);
    }
    const halves = between(0, 128, 256);
    const bytes = await bytesOf((fresh) => void loadMatrix(fresh, matrices.Q6_K, "row", halves, 1));
    assert.equal(bytes, 4 * 210, "half of a block of 256 is read with the other half");
  });
});

/** The view of a config once rank 0 has made row-parallel layers of some matrices: by that it says in which blocks it takes them. */
function viewTaking(prefixes: readonly string[], split: readonly Range[], source = checkpoint): Checkpoint {
  const quantization = quantizationOf(source);
  for (const prefix of prefixes) {
    const { rows, columns } = matrixOf(prefix);
    quantization.linearMethod({
      prefix,
      kind: "row",
      inputSize: columns,
      inputs: split[0] ?? assert.fail(),
      parts: [{ prefix, shardId: null, outputSize: rows, rows: { start: 0, end: rows }, localOffset: 0 }],
      outputSizePerPartition: rows,
      rank: 0,
      worldSize: split.length,
      dtype: "f32",
    });
  }
  return quantization.checkpoint ?? assert.fail();
}

describe("the checkpoint that layers load a GGUF file from", () => {
  /** Ranges of a tensor of `sizeBytes`. */
  const rangeOf = (sizeBytes: number) =>
    fc.tuple(fc.nat(sizeBytes), fc.nat(sizeBytes)).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);

  for (const [what, split] of [
    ["whole blocks", between(0, 256)],
    ["half blocks", between(0, 16, 256)],
  ] as const) {
    it(`reads any range of codes, scales and minimums as that slice of the whole, in any order: ${what}`, () => {
      const view = viewTaking([matrices.Q4_K, matrices.Q5_K, matrices.Q6_K, matrices.Q8_0], split);
      const planes = [...view.tensors.values()].filter(({ name }) => /\.weight\.(codes|scales|minimums)$/.test(name));
      assert.equal(planes.length, 4 * 2 + 2, "of the K formats with minimums three, of the others two");
      const wholes = planes.map((tensor) => {
        const elements = tensor.shape.reduce((product, extent) => product * extent, 1);
        const whole = new Uint8Array(elements * dtypeBytes(tensor.dtype));
        tensor.read(whole, 0);
        return { tensor, whole };
      });
      const reads = fc
        .constantFrom(...wholes)
        .chain(({ tensor, whole }) => rangeOf(whole.length).map(([start, end]) => ({ tensor, whole, start, end })));
      fc.assert(
        fc.property(reads, ({ tensor, whole, start, end }) => {
          const received = new Uint8Array(end - start);
          tensor.read(received, start);
          assert.deepEqual(received, whole.subarray(start, end));
        }),
        { numRuns: 1000 },
      );
      for (const { tensor, whole } of wholes) {
        assert.throws(() => tensor.read(new Uint8Array(1), whole.length), RangeError);
      }
    });
  }

  it("puts scales to their place with codes that are read in groups of rows, and reads their blocks once", async () => {
    for (const [type, together] of [
      ["Q4_0", true],
      ["Q8_0", true],
      ["Q4_1", false],
      ["Q4_K", false],
    ] as const) {
      const { rows, columns } = matrixOf(matrices[type]);
      const fresh = await createGgufLoader().open(fixturePath("formats.gguf"));
      const view = viewTaking([matrices[type]], between(0, columns), fresh);
      const [codes, scales] = ["codes", "scales"].map((plane) => view.tensors.get(`${matrices[type]}.weight.${plane}`));
      assert.ok(codes?.readRowGroups !== undefined && scales?.readSlice !== undefined);
      const rowBytes = (scales.shape[1] ?? 0) * dtypeBytes(scales.dtype);
      const expected = new Uint8Array(rows * rowBytes);
      scales.read(expected, 0);
      const before = fresh.bytesRead;
      const own = { start: 1, end: rows - 1 };
      const ranges = (tensor: CheckpointTensor): Range[] => [own, { start: 0, end: tensor.shape[1] ?? 0 }];
      const codeBytes = (codes.shape[1] ?? 0) * dtypeBytes(codes.dtype);
      const groups = {
        matrix: new Uint8Array((rows + 1) * codeBytes),
        rowBytes: codeBytes,
        codeBits: codes.dtype === "u8" ? 4 : 8,
      } as const;
      // One row further down than in the file.
      const matrix = new Uint8Array((rows + 1) * rowBytes).fill(0xa5);
      const place = matrix.subarray(2 * rowBytes, rows * rowBytes);
      const wanted = expected.subarray(rowBytes, (rows - 1) * rowBytes);
      const readCodes = (): boolean | undefined =>
        codes.readRowGroups?.(ranges(codes), { ...groups, scales: { matrix, rowBytes } }, 2);

      assert.equal(readCodes(), true);
      const ofCodes = fresh.bytesRead - before;
      assert.deepEqual(place, together ? wanted : new Uint8Array(wanted.length).fill(0xa5), type);
      scales.readSlice(ranges(scales), place);
      assert.deepEqual(place, wanted, type);
      assert.equal(fresh.bytesRead - before, ofCodes, `${type}: read with the codes`);
      assert.ok(
        [...matrix.subarray(0, 2 * rowBytes), ...matrix.subarray(rows * rowBytes)].every((byte) => byte === 0xa5),
      );

      // Whatever has become of that memory since.
      place.fill(0);
      scales.readSlice(ranges(scales), place);
      assert.deepEqual(place, wanted, `${type} again`);
      readCodes();
      place.fill(0);
      const elsewhere = new Uint8Array(wanted.length);
      scales.readSlice(ranges(scales), elsewhere);
      assert.deepEqual(elsewhere, wanted, `${type} elsewhere`);
      fresh.close();
    }
  });

  it("reads any slice of a plain matrix as its rows and columns one by one", () => {
    const plain = [...checkpoint.tensors.values()].filter(({ readSlice }) => readSlice !== undefined);
    assert.ok(
      plain.some(({ name, dtype }) => name.includes("k_proj") && dtype === "bf16"),
      "one whose rows are in another order in the file",
    );
    const extent = (length = 0) =>
      fc.tuple(fc.nat(length), fc.nat(length)).map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) }));
    const slices = fc
      .constantFrom(...plain)
      .chain((tensor) => fc.tuple(fc.constant(tensor), extent(tensor.shape[0]), extent(tensor.shape[1])));
    fc.assert(
      fc.property(slices, ([{ name, dtype, shape, read, readSlice }, row, column]) => {
        const width = dtype === "f32" ? 4 : 2;
        const runBytes = (column.end - column.start) * width;
        const expected = new Uint8Array((row.end - row.start) * runBytes);
        for (let r = row.start; r < row.end; r++) {
          const at = (r - row.start) * runBytes;
          read(expected.subarray(at, at + runBytes), (r * (shape[1] ?? 0) + column.start) * width);
        }
        const received = new Uint8Array(expected.length);
        readSlice?.([row, column], received);
        assert.deepEqual(received, expected, name);
      }),
    );
  });

  it("is the file as it is where no layer takes codes", () => {
    const view = quantizationOf(checkpoint).checkpoint ?? assert.fail();
    assert.deepEqual([...view.tensors.keys()], [...checkpoint.tensors.keys()]);
  });
});
