import assert from "node:assert/strict";
import { readFileSync, readSync, truncateSync } from "node:fs";
import type { ReadAt } from "../../src/checkpoint/random-access-file.js";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import { DTYPES, dtypeBytes } from "../../src/core/dtype.js";
import { InternalError } from "../../src/core/errors.js";
import { fixture } from "../fixture.js";
import { checkpointError, safetensorsBytes, temporaryFolder, vectorsBytes } from "./files.js";

const LLAMA = fixture("tiny/llama/bf16/model.safetensors");

describe("a safetensors file", () => {
  const folder = temporaryFolder();

  it("has the tensors that its header, written by the Python library, lists", () => {
    const bytes = readFileSync(LLAMA);
    const headerBytes = Number(bytes.readBigUInt64LE(0));
    const header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> = JSON.parse(
      bytes.toString("utf8", 8, 8 + headerBytes),
    );
    const file = SafetensorsFile.open(LLAMA);
    try {
      const { __metadata__: metadata, ...tensors } = header;
      assert.deepEqual([...file.tensors.keys()].sort(), Object.keys(tensors).sort());
      assert.deepEqual(Object.fromEntries(file.metadata), metadata);
      for (const [name, { dtype, shape, data_offsets }] of Object.entries(tensors)) {
        const tensor = file.tensors.get(name);
        assert.ok(tensor);
        assert.equal(tensor.dtype, dtype.toLowerCase());
        assert.deepEqual(tensor.shape, shape);
        const [begin, end] = data_offsets;
        const content = new Uint8Array(end - begin);
        tensor.read(content, 0);
        assert.deepEqual(Buffer.from(content), bytes.subarray(8 + headerBytes + begin, 8 + headerBytes + end));
      }
    } finally {
      file.close();
    }
  });

  it("is opened by reading its header and nothing else", () => {
    const wanted: [number, number][] = [];
    const spy: ReadAt = (fd, destination, offset, length, position) => {
      wanted.push([position, length]);
      return readSync(fd, destination, offset, length, position);
    };
    SafetensorsFile.open(LLAMA, spy).close();
    const headerBytes = Number(readFileSync(LLAMA).readBigUInt64LE(0));
    assert.deepEqual(wanted, [
      [0, 8],
      [8, headerBytes],
    ]);
  });

  it("counts the bytes of tensors that were read, not those of its header", () => {
    const file = SafetensorsFile.open(folder.write("a.safetensors", vectorsBytes({ a: [1, 2, 3], b: [4, 5, 6, 7] })));
    assert.equal(file.bytesRead, 0);
    const destination = new Uint8Array(2);
    file.tensors.get("b")?.read(destination, 1);
    assert.deepEqual([...destination], [5, 6]);
    assert.equal(file.bytesRead, 2);
    file.close();
  });

  it("reads into shared memory", () => {
    const file = SafetensorsFile.open(folder.write("a.safetensors", vectorsBytes({ a: [1, 2, 3] })));
    const shared = new Uint8Array(new SharedArrayBuffer(8), 2, 3);
    file.tensors.get("a")?.read(shared, 0);
    assert.deepEqual([...shared], [1, 2, 3]);
    file.close();
  });

  it("holds every supported dtype, scalars and empty tensors", () => {
    const header: Record<string, unknown> = { scalar: { dtype: "F32", shape: [], data_offsets: [0, 4] } };
    let offset = 4;
    for (const dtype of DTYPES) {
      const end = offset + 6 * dtypeBytes(dtype);
      header[dtype] = { dtype: dtype.toUpperCase(), shape: [2, 3], data_offsets: [offset, end] };
      header[`empty ${dtype}`] = { dtype: dtype.toUpperCase(), shape: [0, 3], data_offsets: [end, end] };
      offset = end;
    }
    const file = SafetensorsFile.open(folder.write("a.safetensors", safetensorsBytes(header, new Uint8Array(offset))));
    for (const dtype of DTYPES) {
      assert.equal(file.tensors.get(dtype)?.dtype, dtype);
      assert.deepEqual(file.tensors.get(`empty ${dtype}`)?.shape, [0, 3]);
    }
    assert.deepEqual(file.tensors.get("scalar")?.shape, []);
    file.close();
  });

  it("keeps names that objects inherit apart from what they inherit", () => {
    const text = `{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
      "constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}  `;
    const file = SafetensorsFile.open(folder.write("a.safetensors", safetensorsBytes(text, Uint8Array.of(7, 8))));
    assert.deepEqual([...file.tensors.keys()], ["__proto__", "constructor"]);
    file.close();
  });

  it("without tensors is valid", () => {
    const file = SafetensorsFile.open(folder.write("a.safetensors", safetensorsBytes({ __metadata__: { a: "b" } })));
    assert.equal(file.tensors.size, 0);
    assert.equal(file.metadata.get("a"), "b");
    file.close();
  });

  it("refuses a read outside a tensor, even where the file has bytes", () => {
    const file = SafetensorsFile.open(folder.write("a.safetensors", vectorsBytes({ a: [1, 2, 3], b: [4, 5] })));
    const tensor = file.tensors.get("a");
    assert.ok(tensor);
    for (const [length, offset] of [
      [1, 3],
      [4, 0],
      [1, -1],
      [1, 0.5],
      [1, Number.NaN],
      [1, 2 ** 53],
    ] as const) {
      assert.throws(() => tensor.read(new Uint8Array(length), offset), RangeError);
    }
    tensor.read(new Uint8Array(0), 3);
    assert.equal(file.bytesRead, 0);
    file.close();
  });
});

describe("reading a file at a position", () => {
  const folder = temporaryFolder();

  it("goes on where the system returned less than was asked for", () => {
    const trickle: ReadAt = (fd, destination, offset, length, position) =>
      readSync(fd, destination, offset, Math.min(length, 3), position);
    const values = Array.from({ length: 20 }, (_, i) => i);
    const file = SafetensorsFile.open(folder.write("a.safetensors", vectorsBytes({ a: values })), trickle);
    const destination = new Uint8Array(20);
    file.tensors.get("a")?.read(destination, 0);
    assert.deepEqual([...destination], values);
    file.close();
  });

  it("reports a file that was truncated after it was opened, and names the tensor", () => {
    const path = folder.write("a.safetensors", vectorsBytes({ "weights.a": [1, 2, 3, 4] }));
    const file = SafetensorsFile.open(path);
    truncateSync(path, readFileSync(path).length - 1);
    assert.throws(
      () => file.tensors.get("weights.a")?.read(new Uint8Array(4), 0),
      checkpointError("SHORT_READ", /a\.safetensors: expected 4 bytes of weights\.a at.*after 3/),
    );
    const details = { file: path, tensor: "weights.a", expected: 4, received: 3 };
    assert.throws(() => file.tensors.get("weights.a")?.read(new Uint8Array(4), 0), { details });
    assert.equal(file.bytesRead, 0);
    file.close();
  });

  it("reports an error of the system with its reason", () => {
    const broken: ReadAt = () => {
      throw new Error("EIO: i/o error, read");
    };
    const path = folder.write("a.safetensors", vectorsBytes({ a: [1] }));
    assert.throws(() => SafetensorsFile.open(path, broken), checkpointError("READ_FAILED", /a\.safetensors: EIO/));
  });

  it("refuses what is not a regular file, without waiting on it", () => {
    assert.throws(() => SafetensorsFile.open(folder.path), checkpointError("FILE_NOT_FOUND", /not a regular file/));
    assert.throws(() => SafetensorsFile.open(`${folder.path}/none`), checkpointError("FILE_NOT_FOUND", /no file/));
    if (process.platform !== "win32") {
      assert.throws(() => SafetensorsFile.open("/dev/null"), checkpointError("FILE_NOT_FOUND", /not a regular file/));
    }
  });

  it("after close is our own mistake, and never a read from another file", () => {
    const file = SafetensorsFile.open(folder.write("a.safetensors", vectorsBytes({ a: [1] })));
    file.close();
    file.close();
    assert.throws(() => file.tensors.get("a")?.read(new Uint8Array(1), 0), InternalError);
  });
});
