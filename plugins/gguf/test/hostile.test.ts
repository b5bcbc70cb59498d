import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import fc from "fast-check";
import { ShardloomError } from "shardloom/plugin";
import { createGgufLoader } from "../src/index.js";
import { fixtureBytes } from "./fixture.js";
import {
  ARRAY,
  Bytes,
  F64,
  gguf,
  i32s,
  llamaPairs,
  STRING,
  string,
  strings,
  TestFolder,
  U8,
  u32,
  u64,
} from "./gguf-builder.js";

const folder = new TestFolder();
after(() => folder.remove());

/** Files that lie, the code of the error and what its message has to name. */
const hostile: readonly (readonly [string, Buffer, string, RegExp])[] = [
  ["an empty file", Buffer.alloc(0), "INVALID_MAGIC", /"GGUF".*0 bytes/],
  ["a file of three bytes", Buffer.from("GGU"), "INVALID_MAGIC", /3 bytes/],
  ["another magic", gguf({ magic: "GGML" }), "INVALID_MAGIC", /"GGML"/],
  ["a file that ends after its magic", Buffer.from("GGUF"), "TRUNCATED_FILE", /version/],
  ["version 1", gguf({ version: 1 }), "UNSUPPORTED_GGUF_VERSION", /version 1/],
  ["version 4", gguf({ version: 4 }), "UNSUPPORTED_GGUF_VERSION", /version 4/],
  ["a big-endian file", gguf({ version: 0x03000000 }), "UNSUPPORTED_GGUF_VERSION", /big-endian/],
  ["2^64 - 1 tensors", gguf({ tensorCount: 2n ** 64n - 1n }), "INVALID_HEADER", /number of tensors/],
  ["2^64 - 1 pairs", gguf({ pairCount: 2n ** 64n - 1n }), "INVALID_HEADER", /number of metadata pairs/],
  ["a million tensors in no bytes", gguf({ tensorCount: 1_000_000 }), "INVALID_HEADER", /at most 0 tensor/],
  ["a million pairs in no bytes", gguf({ pairCount: 1_000_000 }), "INVALID_HEADER", /at most 0 metadata pairs/],
  ["one pair too many", gguf({ pairs: llamaPairs(), pairCount: 10 }), "TRUNCATED_FILE", /metadata key 9/],
  [
    "a key of 2^63 bytes",
    Buffer.concat([
      gguf({ pairCount: 1 }),
      new Bytes()
        .u64(2n ** 63n)
        .raw(Buffer.alloc(32))
        .done(),
    ]),
    "INVALID_HEADER",
    /the length of metadata key 0 of at most 65535/,
  ],
  [
    "a key longer than the file",
    Buffer.concat([gguf({ pairCount: 1 }), new Bytes().u64(1000).raw(Buffer.alloc(32)).done()]),
    "TRUNCATED_FILE",
    /1000 bytes of metadata key 0/,
  ],
  [
    "a string longer than the file",
    gguf({ pairs: [["general.name", new Bytes().u32(STRING).u64(5_000_000).raw(Buffer.from("abc"))]] }),
    "TRUNCATED_FILE",
    /5000000 bytes of general.name/,
  ],
  [
    "a string of 2^62 bytes",
    gguf({ pairs: [["general.name", new Bytes().u32(STRING).u64(2n ** 62n)]] }),
    "INVALID_HEADER",
    /general.name/,
  ],
  [
    "a string that is not UTF-8",
    gguf({
      pairs: [
        [
          "general.name",
          new Bytes()
            .u32(STRING)
            .u64(2)
            .raw(Buffer.from([0xc3, 0x28])),
        ],
      ],
    }),
    "INVALID_HEADER",
    /UTF-8/,
  ],
  [
    "a key twice",
    gguf({
      pairs: [
        ["a", u32(1)],
        ["a", u32(2)],
      ],
    }),
    "INVALID_HEADER",
    /"a" twice/,
  ],
  [
    "an unknown value type",
    gguf({ pairs: [["a", new Bytes().u32(13).u32(0)]] }),
    "INVALID_HEADER",
    /0 to 12 for a but received 13/,
  ],
  ["an unknown element type", gguf({ pairs: [["a", new Bytes().u32(ARRAY).u32(99).u64(0)]] }), "INVALID_HEADER", /99/],
  ["a boolean of 2", gguf({ pairs: [["a", new Bytes().u32(7).u8(2)]] }), "INVALID_HEADER", /0 or 1/],
  [
    "an array longer than the file",
    gguf({ pairs: [["a", new Bytes().u32(ARRAY).u32(F64).u64(1_000_000)]] }),
    "INVALID_HEADER",
    /at most 0 elements of a/,
  ],
  [
    "an array of 2^64 - 1",
    gguf({
      pairs: [
        [
          "a",
          new Bytes()
            .u32(ARRAY)
            .u32(U8)
            .u64(2n ** 64n - 1n),
        ],
      ],
    }),
    "INVALID_HEADER",
    /the length of a/,
  ],
  [
    "a million strings in no bytes",
    gguf({ pairs: [["a", new Bytes().u32(ARRAY).u32(STRING).u64(1_000_000)]] }),
    "INVALID_HEADER",
    /at most 0 elements/,
  ],
  [
    "a million arrays in no bytes",
    gguf({ pairs: [["a", new Bytes().u32(ARRAY).u32(ARRAY).u64(1_000_000)]] }),
    "INVALID_HEADER",
    /at most 0 elements/,
  ],
  ["arrays nested without end", gguf({ pairs: [["a", nested(1000)]] }), "INVALID_HEADER", /nested at most 4/],
  ["an alignment of 0", gguf({ pairs: [["general.alignment", u32(0)]] }), "INVALID_HEADER", /general.alignment/],
  ["an alignment of 3", gguf({ pairs: [["general.alignment", u32(3)]] }), "INVALID_HEADER", /general.alignment/],
  [
    "an alignment of 2^64 - 1",
    gguf({ pairs: [["general.alignment", u64(2n ** 64n - 1n)]] }),
    "INVALID_HEADER",
    /general.alignment/,
  ],
  [
    "an alignment in words",
    gguf({ pairs: [["general.alignment", string("32")]] }),
    "INVALID_HEADER",
    /general.alignment/,
  ],
];

function nested(depth: number): Bytes {
  const bytes = new Bytes().u32(ARRAY);
  for (let i = 0; i < depth; i++) bytes.u32(ARRAY).u64(1);
  return bytes.u32(U8).u64(0);
}

const F32_TYPE = 0;
const Q8_0_TYPE = 8;
type TensorCase = { dimensions?: (number | bigint)[]; type?: number; offset?: number | bigint; name?: string };

/** A model with one tensor of 64 floats, `first`, and a second one. */
function withTensor(second: TensorCase): Buffer {
  const tensor = { name: "output_norm.weight", dimensions: [32], type: F32_TYPE, offset: 256, ...second };
  const first = { name: "blk.0.attn_norm.weight", dimensions: [64], type: F32_TYPE, offset: 0 };
  return gguf({ pairs: llamaPairs(), tensors: [first, tensor], data: Buffer.alloc(512) });
}

const hostileTensors: readonly (readonly [string, TensorCase, string, RegExp])[] = [
  ["data past the end of the file", { dimensions: [65] }, "TRUNCATED_FILE", /260 bytes of output_norm.weight/],
  ["an offset past the end of the file", { offset: 512 }, "TRUNCATED_FILE", /output_norm/],
  ["an offset of 2^63", { offset: 2n ** 63n }, "TRUNCATED_FILE", /output_norm/],
  ["an offset that is not aligned", { offset: 257 }, "INVALID_HEADER", /multiple of 32 but received 257/],
  ["data over another tensor's", { offset: 224 }, "INVALID_HEADER", /blk.0.attn_norm.weight ends/],
  ["another tensor's name", { name: "blk.0.attn_norm.weight" }, "INVALID_HEADER", /once but received it twice/],
  ["no elements", { dimensions: [0] }, "INVALID_HEADER", /at least 1/],
  ["a product of 2^64", { dimensions: [2n ** 32n, 2n ** 32n] }, "INVALID_HEADER", /safe integer/],
  ["a product that wraps to 0", { dimensions: [2n ** 63n, 2] }, "INVALID_HEADER", /safe integer/],
  ["no dimensions", { dimensions: [] }, "INVALID_HEADER", /1 to 4 dimensions/],
  ["five dimensions", { dimensions: [1, 1, 1, 1, 1] }, "INVALID_HEADER", /1 to 4 dimensions/],
  ["rows of half a block", { dimensions: [16, 2], type: Q8_0_TYPE }, "INVALID_HEADER", /whole Q8_0 blocks of 32/],
  ["an unreadable format", { type: 16 }, "UNSUPPORTED_TENSOR_TYPE", /IQ2_XXS/],
  ["an unknown format", { type: 0xffffffff }, "UNSUPPORTED_TENSOR_TYPE", /type 4294967295/],
  ["a name of 65 bytes", { name: "x".repeat(65) }, "INVALID_HEADER", /at most 64/],
  ["the name of no part of a llama", { name: "blk.0.ffn_gate_exps.weight" }, "UNEXPECTED_TENSOR", /ffn_gate_exps/],
  ["a layer that is no number", { name: "blk.00.attn_norm.weight" }, "UNEXPECTED_TENSOR", /blk\.00/],
  ["query rows that are no heads", { name: "blk.0.attn_q.weight", dimensions: [4, 12] }, "SHAPE_MISMATCH", /4 heads/],
  ["key rows that are no heads", { name: "blk.0.attn_k.weight", dimensions: [4, 6] }, "SHAPE_MISMATCH", /2 heads/],
];

/** Opens and describes; both have to fail, with the same typed error, and leave nothing open. */
async function assertRejected(bytes: Uint8Array, code: string, message: RegExp): Promise<void> {
  const path = folder.write("hostile.gguf", bytes);
  const loader = createGgufLoader();
  for (const call of [() => loader.open(path), () => loader.describe(path)]) {
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof ShardloomError, String(error));
      assert.equal(error.code, code, error.message);
      assert.match(error.message, message);
      assert.equal(error.details.file, path);
      return true;
    });
  }
}

/** How many files the process has open; null where the system does not tell. */
function openDescriptors(): number | null {
  return existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : null;
}

describe("a GGUF file that lies", () => {
  for (const [title, bytes, code, message] of hostile) {
    it(`is rejected with ${code}: ${title}`, () => assertRejected(bytes, code, message));
  }

  it("is closed again when it is rejected", async () => {
    const before = openDescriptors();
    await assertRejected(withTensor({ type: 16 }), "UNSUPPORTED_TENSOR_TYPE", /IQ2_XXS/);
    assert.equal(openDescriptors(), before);
  });

  it("is a model without the lies", async () => {
    const checkpoint = await createGgufLoader().open(folder.write("true.gguf", withTensor({})));
    assert.deepEqual([...checkpoint.tensors.keys()], ["model.layers.0.input_layernorm.weight", "model.norm.weight"]);
    checkpoint.close();
  });

  for (const [title, second, code, message] of hostileTensors) {
    it(`is rejected with ${code}: a tensor with ${title}`, () => assertRejected(withTensor(second), code, message));
  }

  it("is rejected wherever it is cut off inside the header", async () => {
    const whole = withTensor({});
    const headerBytes = whole.length - 512;
    for (let length = 0; length < headerBytes; length++) {
      const path = folder.write("cut.gguf", whole.subarray(0, length));
      await assert.rejects(createGgufLoader().open(path), ShardloomError, `${length} bytes`);
    }
  });

  /** A file with a tokenizer, and one with every tensor format. */
  const originals = [
    Buffer.from(fixtureBytes("formats.gguf")),
    gguf({
      pairs: llamaPairs({
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("smollm"),
        "tokenizer.ggml.tokens": strings(["a", "b", "ab", "<end>"]),
        "tokenizer.ggml.token_type": i32s([1, 1, 1, 3]),
        "tokenizer.ggml.merges": strings(["a b"]),
        "tokenizer.ggml.eos_token_id": u32(3),
      }),
    }),
  ];

  /** Bytes that are other bytes, and words that are as large as they can be. */
  const edits = fc.array(
    fc.tuple(
      fc.nat(1300),
      fc.oneof(
        fc.constantFrom([0], [1], [7], [8], [9], [32], [127], [128], [255]),
        fc.constantFrom(Array(8).fill(255), [255, 255, 255, 127], Array(8).fill(0)),
      ),
    ),
    { minLength: 1, maxLength: 6 },
  );

  it("never does anything but load or fail with a typed error, whichever bytes of it are changed", async () => {
    const loader = createGgufLoader();
    const outcomes = { loaded: 0, rejected: 0 };
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...originals), edits, async (original, changes) => {
        const bytes = Buffer.from(original);
        for (const [at, values] of changes) bytes.set(values, Math.min(at, bytes.length - values.length));
        const path = folder.write("fuzz.gguf", bytes);
        try {
          await loader.describe(path);
          const checkpoint = await loader.open(path);
          for (const tensor of checkpoint.tensors.values()) tensor.read(new Uint8Array(2), 0);
          checkpoint.close();
          outcomes.loaded++;
        } catch (error) {
          assert.ok(error instanceof ShardloomError && error.code !== "INTERNAL", String(error));
          outcomes.rejected++;
        }
      }),
      { numRuns: 1000 },
    );
    assert.ok(outcomes.loaded > 0 && outcomes.rejected > 0, JSON.stringify(outcomes));
  });
});
