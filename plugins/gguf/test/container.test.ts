import assert from "node:assert/strict";
import { gguf as parseWithHub } from "@huggingface/gguf";
import fc from "fast-check";
import { RandomAccessFile, unpackStrings } from "shardloom/plugin";
import { type Container, type MetadataValue, readContainer } from "../src/container.js";
import { fixturePath } from "./fixture.js";
import { ARRAY, Bytes, gguf, STRING, string, strings, TestFolder, u32 } from "./gguf-builder.js";

const folder = new TestFolder();
after(() => folder.remove());

function parse(path: string, keep: (key: string) => boolean = () => true): Container {
  const file = RandomAccessFile.open(path);
  try {
    return readContainer(file, keep);
  } finally {
    file.close();
  }
}

function parseBytes(bytes: Uint8Array, keep?: (key: string) => boolean): Container {
  return parse(folder.write("case.gguf", bytes), keep);
}

function unpacked(value: MetadataValue | undefined): MetadataValue | undefined {
  if (typeof value !== "object") return value;
  return "ends" in value ? unpackStrings(value) : value.map((item) => unpacked(item) ?? "");
}

describe("a GGUF header", () => {
  it("is read as @huggingface/gguf reads it", async () => {
    const path = fixturePath("formats.gguf");
    const ours = parse(path);
    const theirs = await parseWithHub(path, { allowLocalFile: true });
    const { version, tensor_count, kv_count, ...metadata } = theirs.metadata;
    assert.equal(ours.version, version);
    assert.equal(BigInt(ours.tensors.length), tensor_count);
    assert.equal(BigInt(ours.metadata.size), kv_count);
    assert.deepEqual(Object.fromEntries([...ours.metadata].map(([key, value]) => [key, unpacked(value)])), metadata);
    assert.equal(BigInt(ours.dataOffset), theirs.tensorDataOffset);
    assert.deepEqual(
      ours.tensors.map(({ name, dimensions, type, offset }) => ({ name, dimensions, type, offset })),
      theirs.tensorInfos.map(({ name, shape, dtype, offset }) => ({ name, dimensions: shape, type: dtype, offset })),
    );
  });

  it("keeps strings of megabytes whole, wherever they lie", () => {
    const long = "é".repeat(1_500_000);
    const { metadata } = parseBytes(
      gguf({
        pairs: [
          ["a", string("x")],
          ["long", string(long)],
          ["after", u32(7)],
        ],
      }),
    );
    assert.equal(metadata.get("long"), long);
    assert.equal(metadata.get("after"), 7);
  });

  it("keeps arrays whose strings cross its window", () => {
    const values = Array.from({ length: 60_000 }, (_, i) => `token-${i}-${"▁".repeat(i % 7)}`);
    const { metadata } = parseBytes(
      gguf({
        pairs: [
          ["tokens", strings(values)],
          ["after", u32(7)],
        ],
      }),
    );
    assert.deepEqual(unpacked(metadata.get("tokens")), values);
    assert.equal(metadata.get("after"), 7);
  });

  it("passes over arrays whose strings cross its window, or are longer than it", () => {
    const values = Array.from({ length: 60_000 }, (_, i) => (i === 30_000 ? "x".repeat(600_000) : `token-${i}`));
    const file = gguf({
      pairs: [
        ["tokens", strings(values)],
        ["after", u32(7)],
      ],
    });
    assert.deepEqual([...parseBytes(file, (key) => key === "after").metadata], [["after", 7]]);
    assert.deepEqual(unpacked(parseBytes(file).metadata.get("tokens")), values);
  });

  it("cuts the strings of an array where they end, whatever characters they are made of", () => {
    const character = fc.constantFrom("", "a", "\u00e9", "\u2581", "\ufeff", "\u{1f600}", "\u{10ffff}", "\0");
    fc.assert(
      fc.property(fc.array(fc.array(character).map((parts) => parts.join(""))), (values) => {
        const { metadata } = parseBytes(gguf({ pairs: [["tokens", strings(values)]] }));
        assert.deepEqual(unpacked(metadata.get("tokens")), values);
      }),
    );
  });

  it("takes the strings of an array for UTF-8 exactly where each of them is", () => {
    const decoder = new TextDecoder("utf-8", { fatal: true });
    const byte = fc.constantFrom(0x41, 0x80, 0xbf, 0xc3, 0xe2, 0x96, 0xf0, 0x9f, 0x98, 0xff);
    fc.assert(
      fc.property(fc.array(fc.array(byte, { maxLength: 4 }), { maxLength: 4 }), (values) => {
        const raw = values.map((value) => Uint8Array.from(value));
        const array = new Bytes().u32(ARRAY).u32(STRING).u64(raw.length);
        for (const bytes of raw) array.u64(bytes.length).raw(bytes);
        const read = (): unknown => unpacked(parseBytes(gguf({ pairs: [["tokens", array]] })).metadata.get("tokens"));
        let expected: string[] | undefined;
        try {
          expected = raw.map((bytes) => decoder.decode(bytes));
        } catch {
          assert.throws(read, /tokens to be UTF-8/);
          return;
        }
        assert.deepEqual(read(), expected);
      }),
      { numRuns: 500 },
    );
  });

  it("keeps a byte order mark that is part of a string", () => {
    assert.equal(parseBytes(gguf({ pairs: [["token", string("\ufeffx")]] })).metadata.get("token"), "\ufeffx");
  });

  it("takes any key for a key", () => {
    const { metadata } = parseBytes(
      gguf({
        pairs: [
          ["__proto__", string("x")],
          ["constructor", u32(1)],
        ],
      }),
    );
    assert.deepEqual(
      [...metadata],
      [
        ["__proto__", "x"],
        ["constructor", 1],
      ],
    );
  });

  it("reads every value type, exactly", () => {
    const scalars: [number, Bytes, MetadataValue][] = [
      [0, new Bytes().u8(255), 255],
      [1, new Bytes().u8(255), -1],
      [2, new Bytes().u8(0x34).u8(0x92), 0x9234],
      [3, new Bytes().u8(0xfe).u8(0xff), -2],
      [4, new Bytes().u32(4_000_000_000), 4_000_000_000],
      [5, new Bytes().i32(-5), -5],
      [6, new Bytes().f32(0.5), 0.5],
      [7, new Bytes().u8(1), true],
      [8, new Bytes().string("text"), "text"],
      [10, new Bytes().u64(2 ** 53 - 1), 2 ** 53 - 1],
      [10, new Bytes().u64(2n ** 64n - 1n), 2n ** 64n - 1n],
      [11, new Bytes().u64(2n ** 64n - 3n), -3],
      [12, new Bytes().raw(new Uint8Array(new Float64Array([0.1]).buffer)), 0.1],
    ];
    for (const [type, bytes, value] of scalars) {
      const single = new Bytes().u32(type).raw(bytes.done());
      const array = new Bytes().u32(ARRAY).u32(type).u64(2).raw(bytes.done()).raw(bytes.done());
      const nested = new Bytes().u32(ARRAY).u32(ARRAY).u64(1).u32(type).u64(1).raw(bytes.done());
      const pairs = [
        ["single", single],
        ["array", array],
        ["nested", nested],
        ["end", u32(1)],
      ] as const;
      const file = gguf({ pairs });
      const values = [...parseBytes(file).metadata.values()].map(unpacked);
      assert.deepEqual(values, [value, [value, value], [[value]], 1], `type ${type}`);
      assert.deepEqual([...parseBytes(file, (key) => key === "end").metadata], [["end", 1]], `type ${type}, skipped`);
    }
  });

  it("says where the data starts by the alignment of the file", () => {
    for (const alignment of [1, 8, 32, 4096]) {
      const pairs = [["general.alignment", u32(alignment)]] as const;
      const { dataOffset } = parseBytes(gguf({ pairs, alignment, data: new Uint8Array(1) }));
      assert.equal(dataOffset, Math.ceil(gguf({ pairs }).length / alignment) * alignment);
    }
  });
});
