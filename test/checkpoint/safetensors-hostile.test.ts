import assert from "node:assert/strict";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import { MAX_HEADER_BYTES, MAX_TENSORS, parseHeader } from "../../src/checkpoint/safetensors-header.js";
import { CheckpointError } from "../../src/core/errors.js";
import { checkpointError, openDescriptors, safetensorsBytes, temporaryFolder } from "./files.js";

const DATA = new Uint8Array(8);

/** A header of two tensors over 8 bytes, with fields of the second, "b", replaced. */
function withEntry(fields: Record<string, unknown>): Uint8Array {
  const a = { dtype: "U8", shape: [4], data_offsets: [0, 4] };
  const b = { dtype: "U8", shape: [4], data_offsets: [4, 8], ...fields };
  return safetensorsBytes({ a, b }, DATA);
}

/** Two vectors of u8 at the given offsets, over 8 bytes. */
function withOffsets(a: readonly [number, number], b: readonly [number, number]): Uint8Array {
  const entry = ([begin, end]: readonly [number, number]) => ({
    dtype: "U8",
    shape: [end - begin],
    data_offsets: [begin, end],
  });
  return safetensorsBytes({ a: entry(a), b: entry(b) }, DATA);
}

interface HostileCase {
  readonly code: string;
  readonly what: string;
  readonly bytes: Uint8Array;
  readonly message?: RegExp;
}

const cases: readonly HostileCase[] = [
  { code: "FILE_TOO_SHORT", what: "an empty file", bytes: new Uint8Array(0), message: /at least 8 bytes.*received 0/ },
  { code: "FILE_TOO_SHORT", what: "a file of 7 bytes", bytes: new Uint8Array(7) },
  { code: "HEADER_EMPTY", what: "a header length of 0", bytes: safetensorsBytes("{}", DATA, 0) },
  {
    code: "HEADER_BEYOND_FILE",
    what: "a header one byte longer than the file",
    bytes: safetensorsBytes("{}", undefined, 3),
  },
  {
    code: "HEADER_BEYOND_FILE",
    what: "a header of the largest allowed length in a short file",
    bytes: safetensorsBytes("{}", DATA, MAX_HEADER_BYTES),
  },
  {
    code: "HEADER_TOO_LARGE",
    what: "a header above the limit",
    bytes: safetensorsBytes("{}", DATA, MAX_HEADER_BYTES + 1),
  },
  { code: "HEADER_TOO_LARGE", what: "a header of 2^40 bytes", bytes: safetensorsBytes("{}", DATA, 2n ** 40n) },
  { code: "HEADER_TOO_LARGE", what: "a header of 2^64 - 1 bytes", bytes: safetensorsBytes("{}", DATA, 2n ** 64n - 1n) },
  {
    code: "HEADER_NOT_UTF8",
    what: "a header that is not UTF-8",
    bytes: safetensorsBytes(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)),
  },
  {
    code: "HEADER_NOT_UTF8",
    what: "a header with an overlong encoding",
    bytes: safetensorsBytes(Uint8Array.of(0x7b, 0xc0, 0xaf, 0x7d)),
  },
  { code: "HEADER_NOT_JSON", what: "a header that is not JSON", bytes: safetensorsBytes("{nope}") },
  { code: "HEADER_NOT_JSON", what: "a header that ends in the middle", bytes: safetensorsBytes('{"a":{"dtype":"U8"') },
  { code: "HEADER_NOT_JSON", what: "a header behind a byte order mark", bytes: safetensorsBytes("\ufeff{}") },
  {
    code: "HEADER_NOT_JSON",
    what: "a header with NaN",
    bytes: safetensorsBytes('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'),
  },
  {
    code: "HEADER_NOT_OBJECT",
    what: "a header that is an array",
    bytes: safetensorsBytes("[]"),
    message: /an array of 0/,
  },
  { code: "HEADER_NOT_OBJECT", what: "a header that is null", bytes: safetensorsBytes("null") },
  { code: "HEADER_NOT_OBJECT", what: "a header that is a string", bytes: safetensorsBytes('"{}"') },
  { code: "HEADER_NOT_OBJECT", what: "white space before the header", bytes: safetensorsBytes(" {}") },
  {
    code: "DUPLICATE_KEY",
    what: "a tensor twice",
    bytes: safetensorsBytes(
      '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
      DATA,
    ),
    message: /"a" twice/,
  },
  {
    code: "DUPLICATE_KEY",
    what: "a tensor twice, once escaped",
    bytes: safetensorsBytes(
      '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"\\u0061":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
      DATA,
    ),
  },
  {
    code: "DUPLICATE_KEY",
    what: "a dtype twice",
    bytes: safetensorsBytes('{"a":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}}', DATA),
  },
  { code: "INVALID_METADATA", what: "__metadata__ that is a string", bytes: safetensorsBytes({ __metadata__: "pt" }) },
  {
    code: "INVALID_METADATA",
    what: "__metadata__ that holds a number",
    bytes: safetensorsBytes({ __metadata__: { format: 1 } }),
    message: /"format": 1 of type number/,
  },
  {
    code: "INVALID_METADATA",
    what: "__metadata__ that holds an object",
    bytes: safetensorsBytes({ __metadata__: { a: {} } }),
  },
  {
    code: "INVALID_TENSOR_ENTRY",
    what: "a tensor that is null",
    bytes: safetensorsBytes({ a: null }),
    message: /tensor "a"/,
  },
  { code: "INVALID_TENSOR_ENTRY", what: "a tensor that is an array", bytes: safetensorsBytes({ a: [] }) },
  {
    code: "INVALID_TENSOR_ENTRY",
    what: "a tensor without a dtype",
    bytes: withEntry({ dtype: undefined }),
    message: /tensor "b".*dtype.*undefined/,
  },
  { code: "INVALID_TENSOR_ENTRY", what: "a dtype that is a number", bytes: withEntry({ dtype: 3 }) },
  { code: "INVALID_TENSOR_ENTRY", what: "a tensor without a shape", bytes: withEntry({ shape: undefined }) },
  { code: "INVALID_TENSOR_ENTRY", what: "a shape that is a number", bytes: withEntry({ shape: 4 }) },
  { code: "INVALID_TENSOR_ENTRY", what: "a tensor without offsets", bytes: withEntry({ data_offsets: undefined }) },
  {
    code: "INVALID_TENSOR_ENTRY",
    what: "offsets that are an object",
    bytes: withEntry({ data_offsets: { 0: 4, 1: 8 } }),
  },
  {
    code: "UNSUPPORTED_DTYPE",
    what: "a dtype of the format that is not supported",
    bytes: withEntry({ dtype: "F64" }),
    message: /tensor "b".*F32, F16, BF16, I8, U8, I32, I64, F8_E4M3.*"F64"/,
  },
  { code: "UNSUPPORTED_DTYPE", what: "a dtype in lower case", bytes: withEntry({ dtype: "u8" }) },
  {
    code: "UNSUPPORTED_DTYPE",
    what: "a dtype that is a name objects inherit",
    bytes: withEntry({ dtype: "constructor" }),
  },
  { code: "INVALID_SHAPE", what: "a negative extent", bytes: withEntry({ shape: [-4] }), message: /-4 of type number/ },
  { code: "INVALID_SHAPE", what: "two negative extents whose product is right", bytes: withEntry({ shape: [-2, -2] }) },
  { code: "INVALID_SHAPE", what: "a fractional extent", bytes: withEntry({ shape: [0.5, 8] }) },
  {
    code: "INVALID_SHAPE",
    what: "an extent that no double counts to",
    bytes: safetensorsBytes('{"a":{"dtype":"U8","shape":[1e300],"data_offsets":[0,8]}}', DATA),
  },
  { code: "INVALID_SHAPE", what: "an extent of 2^53", bytes: withEntry({ shape: [2 ** 53] }) },
  { code: "INVALID_SHAPE", what: "an extent in a string", bytes: withEntry({ shape: ["4"] }) },
  { code: "INVALID_SHAPE", what: "an extent that is null", bytes: withEntry({ shape: [null, 4] }) },
  { code: "INVALID_SHAPE", what: "a thousand dimensions", bytes: withEntry({ shape: Array(1000).fill(1) }) },
  {
    code: "TENSOR_TOO_LARGE",
    what: "a shape whose product overflows",
    bytes: withEntry({ shape: [2 ** 32, 2 ** 32] }),
  },
  {
    code: "TENSOR_TOO_LARGE",
    what: "a shape whose product wraps around to the right size in 64 bits",
    bytes: withEntry({ shape: [4, 2 ** 31 - 2 ** 16 + 1, 2 ** 31 + 2 ** 16 + 1] }),
  },
  {
    code: "TENSOR_TOO_LARGE",
    what: "a product that overflows before it meets a zero",
    bytes: withEntry({ shape: [2 ** 40, 2 ** 40, 0], data_offsets: [8, 8] }),
  },
  {
    code: "TENSOR_TOO_LARGE",
    what: "a count that fits but whose bytes do not",
    bytes: withEntry({ dtype: "I64", shape: [2 ** 51] }),
  },
  { code: "INVALID_OFFSETS", what: "one offset", bytes: withEntry({ data_offsets: [4] }) },
  { code: "INVALID_OFFSETS", what: "three offsets", bytes: withEntry({ data_offsets: [4, 8, 8] }) },
  { code: "INVALID_OFFSETS", what: "offsets in the wrong order", bytes: withEntry({ data_offsets: [8, 4] }) },
  { code: "INVALID_OFFSETS", what: "a negative offset", bytes: withEntry({ data_offsets: [-4, 0] }) },
  { code: "INVALID_OFFSETS", what: "a fractional offset", bytes: withEntry({ data_offsets: [4, 7.5] }) },
  { code: "INVALID_OFFSETS", what: "an offset beyond 2^53", bytes: withEntry({ data_offsets: [4, 2 ** 60] }) },
  { code: "INVALID_OFFSETS", what: "offsets in strings", bytes: withEntry({ data_offsets: ["4", "8"] }) },
  {
    code: "SIZE_MISMATCH",
    what: "more bytes than the shape needs",
    bytes: withEntry({ shape: [3] }),
    message: /3 bytes apart for shape \[3\] of u8/,
  },
  { code: "SIZE_MISMATCH", what: "fewer bytes than the shape needs", bytes: withEntry({ dtype: "F16" }) },
  { code: "SIZE_MISMATCH", what: "an empty shape over bytes", bytes: withEntry({ shape: [0] }) },
  {
    code: "OFFSETS_BEYOND_FILE",
    what: "an end one byte past the file",
    bytes: withEntry({ shape: [5], data_offsets: [4, 9] }),
    message: /within the file's 8 data bytes/,
  },
  {
    code: "OFFSETS_BEYOND_FILE",
    what: "a tensor of 4 PiB in a file of a few bytes",
    bytes: withEntry({ shape: [2 ** 52], data_offsets: [4, 4 + 2 ** 52] }),
  },
  {
    code: "OFFSETS_BEYOND_FILE",
    what: "an empty tensor past the end",
    bytes: withEntry({ shape: [0], data_offsets: [9, 9] }),
  },
  {
    code: "OVERLAPPING_TENSORS",
    what: "two tensors that share a byte",
    bytes: withOffsets([0, 5], [4, 8]),
    message: /tensor "b".*begins at 4.*"a" at 5/,
  },
  { code: "OVERLAPPING_TENSORS", what: "two tensors over the same bytes", bytes: withOffsets([0, 8], [0, 8]) },
  { code: "OVERLAPPING_TENSORS", what: "an empty tensor inside another", bytes: withOffsets([0, 8], [4, 4]) },
  {
    code: "UNCLAIMED_BYTES",
    what: "a hole between two tensors",
    bytes: withOffsets([0, 3], [4, 8]),
    message: /1 unused bytes before this one, at 3/,
  },
  { code: "UNCLAIMED_BYTES", what: "a hole before the first tensor", bytes: withOffsets([1, 4], [4, 8]) },
  {
    code: "TRAILING_BYTES",
    what: "bytes after the last tensor",
    bytes: withOffsets([0, 4], [4, 7]),
    message: /1 more bytes/,
  },
  { code: "TRAILING_BYTES", what: "bytes after a header without tensors", bytes: safetensorsBytes("{}", DATA) },
];

describe("a hostile safetensors header", () => {
  const folder = temporaryFolder();

  for (const { code, what, bytes, message } of cases) {
    it(`${what} is ${code}`, () => {
      const path = folder.write("hostile.safetensors", bytes);
      assert.throws(
        () => SafetensorsFile.open(path),
        checkpointError(code, /hostile\.safetensors/, ...(message ? [message] : [])),
      );
    });
  }

  it("more tensors than any model has is TOO_MANY_TENSORS", () => {
    const entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}';
    const names = Array.from({ length: MAX_TENSORS + 1 }, (_, i) => `"${i}":${entry}`);
    assert.throws(
      () => parseHeader(Buffer.from(`{${names.join(",")}}`), 0, "file"),
      checkpointError("TOO_MANY_TENSORS"),
    );
  });

  it("names the tensor in the error's fields, and repeats no absurdly long one", () => {
    const name = "x".repeat(100_000);
    assert.throws(
      () => parseHeader(Buffer.from(JSON.stringify({ [name]: { dtype: name } })), 0, "file"),
      (error) => {
        assert.ok(error instanceof CheckpointError);
        assert.equal(error.code, "UNSUPPORTED_DTYPE");
        assert.ok(String(error.details.tensor).startsWith("xxx"));
        assert.ok(error.message.length < 2000);
        return true;
      },
    );
  });

  it("nested a hundred thousand deep ends in an error, not in a stack overflow", () => {
    const depth = 100_000;
    const text = `{"a":{"dtype":"U8","shape":${"[".repeat(depth)}${"]".repeat(depth)},"data_offsets":[0,0]}}`;
    assert.throws(() => parseHeader(Buffer.from(text), 0, "file"), checkpointError("INVALID_SHAPE"));
  });

  it("leaves no file open", function () {
    const before = openDescriptors();
    if (before === null) return this.skip();
    for (const { bytes } of cases) {
      const path = folder.write("hostile.safetensors", bytes);
      assert.throws(() => SafetensorsFile.open(path));
    }
    assert.equal(openDescriptors(), before);
  });
});
