import assert from "node:assert/strict";
import fc from "fast-check";
import type { Checkpoint, CheckpointTensor } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { readExpected } from "./expected.js";
import { fixturePath } from "./fixture.js";
import { gguf, llamaPairs, TestFolder } from "./gguf-builder.js";

function tensorOf(checkpoint: Checkpoint, name: string): CheckpointTensor {
  const tensor = checkpoint.tensors.get(name);
  assert.ok(tensor, `${name} is missing`);
  return tensor;
}

function readRange(tensor: CheckpointTensor, start: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(0xa5);
  tensor.read(bytes, start);
  return bytes;
}

describe("tensors of a GGUF file", () => {
  const expected = readExpected();
  let checkpoint: Checkpoint;

  before(async () => {
    checkpoint = await createGgufLoader().open(fixturePath("formats.gguf"));
  });
  after(() => checkpoint.close());

  it("has every tensor of the file under its published name, and no other", () => {
    assert.deepEqual([...checkpoint.tensors.keys()].sort(), expected.map(({ name }) => name).sort());
  });

  for (const { name, dtype, shape, bytes } of expected) {
    it(`reads ${name} as the gguf package dequantizes it, in the published order of rows`, () => {
      const tensor = tensorOf(checkpoint, name);
      assert.equal(tensor.dtype, dtype);
      assert.deepEqual(tensor.shape, shape);
      assert.deepEqual(Buffer.from(readRange(tensor, 0, bytes.length)), Buffer.from(bytes));
    });
  }

  it("reads any range of any tensor as that slice of the whole, whatever block, row or byte it starts in", () => {
    const ranges = fc
      .constantFrom(...expected)
      .chain((tensor) =>
        fc
          .tuple(fc.nat(tensor.bytes.length), fc.nat(tensor.bytes.length))
          .map(([a, b]) => ({ tensor, start: Math.min(a, b), end: Math.max(a, b) })),
      );
    fc.assert(
      fc.property(ranges, ({ tensor, start, end }) => {
        const received = readRange(tensorOf(checkpoint, tensor.name), start, end - start);
        assert.deepEqual(Buffer.from(received), Buffer.from(tensor.bytes.subarray(start, end)));
      }),
      { numRuns: 2000 },
    );
  });

  it("reads into shared memory, where parameters live", () => {
    for (const { name, bytes } of expected) {
      const shared = new Uint8Array(new SharedArrayBuffer(bytes.length + 3), 3);
      tensorOf(checkpoint, name).read(shared, 0);
      assert.ok(Buffer.from(shared).equals(Buffer.from(bytes)), name);
    }
  });

  it("refuses a range outside the tensor before it reads anything", () => {
    const before = checkpoint.bytesRead;
    for (const { name, bytes } of expected) {
      const tensor = tensorOf(checkpoint, name);
      for (const start of [-1, 0.5, Number.NaN, bytes.length]) {
        assert.throws(() => tensor.read(new Uint8Array(1), start), RangeError, `${name} at ${start}`);
      }
      assert.throws(() => tensor.read(new Uint8Array(bytes.length + 1), 0), RangeError);
    }
    assert.equal(checkpoint.bytesRead, before);
  });
});

describe("what is read from a GGUF file", () => {
  const folder = new TestFolder();
  after(() => folder.remove());

  /** Rows of Q8_0 blocks of scale 1: the values are the codes. More elements than are dequantized at a time. */
  const rows = 300;
  const columns = 256;
  const codeOf = (index: number): number => ((index * 37) % 251) - 125;
  const binary16One = [0x00, 0x3c];

  function bigTensor(): string {
    const data = Buffer.alloc((rows * columns * 34) / 32);
    for (let block = 0; block < (rows * columns) / 32; block++) {
      data.set(binary16One, block * 34);
      for (let i = 0; i < 32; i++) data.writeInt8(codeOf(block * 32 + i), block * 34 + 2 + i);
    }
    const tensors = [{ name: "token_embd.weight", dimensions: [columns, rows], type: 8, offset: 0 }];
    return folder.write("big.gguf", gguf({ pairs: llamaPairs(), tensors, data }));
  }

  it("dequantizes tensors larger than its buffers", async () => {
    const checkpoint = await createGgufLoader().open(bigTensor());
    const bytes = readRange(tensorOf(checkpoint, "model.embed_tokens.weight"), 0, rows * columns * 4);
    const values = new Float32Array(bytes.buffer);
    for (let i = 0; i < rows * columns; i++) assert.equal(values[i], codeOf(i), `element ${i}`);
    checkpoint.close();
  });

  it("is only the blocks that cover the range", async () => {
    const checkpoint = await createGgufLoader().open(bigTensor());
    const tensor = tensorOf(checkpoint, "model.embed_tokens.weight");
    assert.equal(checkpoint.bytesRead, 0, "opening reads no tensor data");
    readRange(tensor, 5 * columns * 4, columns * 4);
    assert.equal(checkpoint.bytesRead, (columns / 32) * 34, "one row is its eight blocks");
    readRange(tensor, 32 * 4 - 1, 2);
    assert.equal(checkpoint.bytesRead, (columns / 32 + 2) * 34, "two bytes on a border are two blocks");
    checkpoint.close();
  });

  it("is as many bytes as a head has when whole heads are put back in order", async () => {
    const headRows = 8;
    const data = Buffer.from(new Float32Array(Array.from({ length: 32 * 32 }, (_, i) => i)).buffer);
    const tensors = [{ name: "blk.0.attn_q.weight", dimensions: [32, 32], type: 0, offset: 0 }];
    const checkpoint = await createGgufLoader().open(
      folder.write("heads.gguf", gguf({ pairs: llamaPairs(), tensors, data })),
    );
    const tensor = tensorOf(checkpoint, "model.layers.0.self_attn.q_proj.weight");
    const headBytes = headRows * 32 * 4;
    const bytes = readRange(tensor, headBytes, 2 * headBytes);
    assert.equal(checkpoint.bytesRead, 2 * headBytes);
    const firsts = Array.from({ length: 2 * headRows }, (_, row) => Buffer.from(bytes).readFloatLE(row * 32 * 4) / 32);
    assert.deepEqual(firsts, [8, 10, 12, 14, 9, 11, 13, 15, 16, 18, 20, 22, 17, 19, 21, 23]);
    checkpoint.close();
  });
});
