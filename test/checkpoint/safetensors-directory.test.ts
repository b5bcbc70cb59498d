import assert from "node:assert/strict";
import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { INDEX_FILE } from "../../src/checkpoint/index-file.js";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import { fixture } from "../fixture.js";
import { checkpointError, openDescriptors, safetensorsBytes, temporaryFolder, vectorsBytes } from "./files.js";

const FIRST = "model-00001-of-00002.safetensors";
const SECOND = "model-00002-of-00002.safetensors";

describe("a directory of safetensors files", () => {
  const folder = temporaryFolder();
  const writeIndex = (weight_map: unknown): string =>
    folder.write(INDEX_FILE, JSON.stringify({ metadata: {}, weight_map }));
  /** Names and files of a directory's tensors; closed again. */
  const listed = (): Record<string, string> => {
    const checkpoint = SafetensorsDirectory.open(folder.path);
    checkpoint.close();
    return Object.fromEntries(
      [...checkpoint.tensors].map(([name, { file }]) => [name, file.slice(folder.path.length + 1)]),
    );
  };

  it("with an index has the tensors that transformers wrote, each in the file that the index names", () => {
    const path = fixture("tiny/llama-uneven/bf16");
    const index: { weight_map: Record<string, string>; metadata: { total_size: number } } = JSON.parse(
      readFileSync(join(path, INDEX_FILE), "utf8"),
    );
    const checkpoint = SafetensorsDirectory.open(path);
    const files = Object.fromEntries(
      [...checkpoint.tensors].map(([name, { file }]) => [name, file.slice(path.length + 1)]),
    );
    assert.deepEqual(files, index.weight_map);
    assert.equal(checkpoint.files.length, 2);
    assert.equal(checkpoint.bytesRead, 0);
    for (const tensor of checkpoint.tensors.values()) {
      const elements = tensor.shape.reduce((product, extent) => product * extent, 1);
      tensor.read(new Uint8Array(elements * 2), 0);
    }
    assert.equal(checkpoint.bytesRead, index.metadata.total_size);
    checkpoint.close();
  });

  it("without an index has the tensors of all its files", () => {
    folder.write("a.safetensors", vectorsBytes({ a: [1] }));
    folder.write("b.safetensors", vectorsBytes({ b: [2] }));
    assert.deepEqual(listed(), { a: "a.safetensors", b: "b.safetensors" });
  });

  it("passes over files that the index does not name, consolidated ones among them", () => {
    writeIndex({ a: FIRST });
    folder.write(FIRST, vectorsBytes({ a: [1] }));
    folder.write("consolidated.safetensors", vectorsBytes({ a: [1] }));
    folder.write("model-left-over.safetensors", "damaged");
    assert.deepEqual(listed(), { a: FIRST });
  });

  it("passes over consolidated files beside a model file, and over hidden ones", () => {
    folder.write("model.safetensors", vectorsBytes({ a: [1] }));
    folder.write("consolidated.safetensors", vectorsBytes({ other: [1] }));
    folder.write("consolidated-00001-of-00002.safetensors", "damaged");
    folder.write("._model.safetensors", "resource fork");
    assert.deepEqual(listed(), { a: "model.safetensors" });
  });

  it("reads consolidated files where there are no others", () => {
    folder.write("consolidated.safetensors", vectorsBytes({ a: [1] }));
    assert.deepEqual(listed(), { a: "consolidated.safetensors" });
  });

  it("follows the links of the hub's cache, which lead out of the snapshot", () => {
    folder.write("blobs/0123", vectorsBytes({ a: [1, 2] }));
    folder.write("blobs/4567", JSON.stringify({ weight_map: { a: FIRST } }));
    const snapshot = join(folder.path, "snapshots", "89ab");
    mkdirSync(snapshot, { recursive: true });
    symlinkSync("../../blobs/0123", join(snapshot, FIRST));
    symlinkSync("../../blobs/4567", join(snapshot, INDEX_FILE));
    const checkpoint = SafetensorsDirectory.open(snapshot);
    const bytes = new Uint8Array(2);
    checkpoint.tensors.get("a")?.read(bytes, 0);
    checkpoint.close();
    assert.deepEqual([...bytes], [1, 2]);
  });

  it("reads files in a subdirectory that the index names", () => {
    writeIndex({ a: "weights/a.safetensors" });
    folder.write("weights/a.safetensors", vectorsBytes({ a: [1] }));
    assert.deepEqual(listed(), { a: "weights/a.safetensors" });
  });

  it("with one name in two files is refused, naming both", () => {
    folder.write("a.safetensors", vectorsBytes({ gate: [1], a: [2] }));
    folder.write("b.safetensors", vectorsBytes({ gate: [1], b: [2] }));
    assert.throws(listed, checkpointError("DUPLICATE_TENSOR", /"gate".*a\.safetensors and .*b\.safetensors/));
  });

  it("with one name in two indexed files is refused, whichever of them the index names", () => {
    folder.write(FIRST, vectorsBytes({ gate: [1] }));
    folder.write(SECOND, vectorsBytes({ gate: [1], up: [1] }));
    writeIndex({ gate: FIRST, up: SECOND });
    assert.throws(listed, checkpointError("DUPLICATE_TENSOR", /"gate"/));
  });

  it("whose index names a file that is missing is refused, with what should be in it", () => {
    folder.write(FIRST, vectorsBytes({ a: [1] }));
    writeIndex({ a: FIRST, b: SECOND, c: SECOND });
    assert.throws(listed, checkpointError("MISSING_WEIGHT_FILE", /00002-of-00002.*2 tensors \(b,/));
  });

  it("whose index puts a tensor into another file is refused, with where it is", () => {
    folder.write(FIRST, vectorsBytes({ a: [1] }));
    folder.write(SECOND, vectorsBytes({ b: [1], c: [1] }));
    writeIndex({ a: FIRST, b: FIRST, c: SECOND });
    assert.throws(
      listed,
      checkpointError("TENSOR_NOT_IN_FILE", /"b": expected it in .*00001-of.* found it in .*00002-of/),
    );
  });

  it("whose index lists a tensor that no file has is refused", () => {
    folder.write(FIRST, vectorsBytes({ a: [1] }));
    writeIndex({ a: FIRST, b: FIRST });
    assert.throws(listed, checkpointError("TENSOR_NOT_IN_FILE", /"b".*found it in no file/));
  });

  it("with a tensor that the index omits is refused", () => {
    folder.write(FIRST, vectorsBytes({ a: [1], surplus: [2] }));
    writeIndex({ a: FIRST });
    assert.throws(listed, checkpointError("TENSOR_NOT_IN_INDEX", /"surplus" in .*00001-of/));
  });

  it("with a damaged file is refused, naming the file", () => {
    folder.write("model.safetensors", safetensorsBytes("{}", new Uint8Array(1)));
    assert.throws(listed, checkpointError("TRAILING_BYTES", /model\.safetensors/));
  });

  it("with nothing but pickled weights is refused, saying why", () => {
    folder.write("config.json", "{}");
    folder.write("pytorch_model.bin", "pickle");
    assert.throws(listed, checkpointError("NO_SAFETENSORS", /found pytorch_model\.bin; only safetensors is read/));
  });

  it("without weights is refused", () => {
    assert.throws(listed, checkpointError("NO_SAFETENSORS", /found none$/));
  });

  it("that does not exist is refused", () => {
    assert.throws(() => SafetensorsDirectory.open(join(folder.path, "none")), checkpointError("FILE_NOT_FOUND"));
  });

  it("leaves no file open after close, nor after a failure half way", function () {
    const before = openDescriptors();
    if (before === null) return this.skip();
    folder.write(FIRST, vectorsBytes({ a: [1] }));
    folder.write(SECOND, vectorsBytes({ b: [1] }));
    const checkpoint = SafetensorsDirectory.open(folder.path);
    assert.equal(openDescriptors(), before + 2);
    checkpoint.close();
    assert.equal(openDescriptors(), before);
    folder.write(SECOND, "damaged, after the first was opened");
    assert.throws(() => SafetensorsDirectory.open(folder.path));
    folder.write(SECOND, vectorsBytes({ a: [1] }));
    assert.throws(() => SafetensorsDirectory.open(folder.path));
    writeIndex({ a: FIRST });
    folder.write(FIRST, vectorsBytes({ c: [1] }));
    assert.throws(() => SafetensorsDirectory.open(folder.path));
    assert.equal(openDescriptors(), before);
  });
});

describe("an index of safetensors files", () => {
  const folder = temporaryFolder();
  const open = (): unknown => SafetensorsDirectory.open(folder.path);

  const unsafe: readonly string[] = [
    "../model.safetensors",
    "a/../../model.safetensors",
    "a/..",
    "/etc/model.safetensors",
    "//host/model.safetensors",
    "C:\\model.safetensors",
    "C:model.safetensors",
    "..\\model.safetensors",
    "./model.safetensors",
    "a//model.safetensors",
    "",
    ".",
    "..",
    "model.safetensors/",
    "model\u0000.safetensors",
    "/dev/stdin",
    "config.json",
    "pytorch_model.bin",
  ];
  for (const name of unsafe) {
    it(`that names ${JSON.stringify(name)} is refused before that is opened`, () => {
      folder.write("model.safetensors", vectorsBytes({ a: [1] }));
      folder.write(INDEX_FILE, JSON.stringify({ weight_map: { a: name } }));
      assert.throws(open, checkpointError("UNSAFE_FILE_NAME", /tensor "a"/));
    });
  }

  const broken: readonly (readonly [string, string, string])[] = [
    ["INVALID_JSON", "is not JSON", "{"],
    ["INVALID_JSON", "is an array", "[]"],
    ["INVALID_INDEX", "has no weight_map", "{}"],
    ["INVALID_INDEX", "has an empty weight_map", '{"weight_map":{}}'],
    ["INVALID_INDEX", "has a list as weight_map", '{"weight_map":["a"]}'],
    ["INVALID_INDEX", "names a number", '{"weight_map":{"a":1}}'],
    ["INVALID_INDEX", "names null", '{"weight_map":{"a":null}}'],
    ["DUPLICATE_KEY", "has a tensor twice", '{"weight_map":{"a":"a.safetensors","\\u0061":"b.safetensors"}}'],
    [
      "INVALID_INDEX",
      "names more files than a model has",
      JSON.stringify({
        weight_map: Object.fromEntries(Array.from({ length: 10_001 }, (_, i) => [`${i}`, `${i}.safetensors`])),
      }),
    ],
  ];
  for (const [code, what, text] of broken) {
    it(`that ${what} is ${code}`, () => {
      folder.write(INDEX_FILE, text);
      assert.throws(open, checkpointError(code, /model\.safetensors\.index\.json/));
    });
  }

  it("that is not UTF-8 is INVALID_UTF8", () => {
    folder.write(INDEX_FILE, Uint8Array.of(0x7b, 0xff, 0x7d));
    assert.throws(open, checkpointError("INVALID_UTF8"));
  });
});
