import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { SafetensorsFile } from "../../src/checkpoint/safetensors.js";
import { LENGTH_BYTES, parseHeader } from "../../src/checkpoint/safetensors-header.js";
import { formatHeader, layOutDeferred, layOutFile, type TensorSpec } from "../../src/checkpoint/safetensors-layout.js";
import { DTYPES } from "../../src/core/dtype.js";
import { fixture } from "../fixture.js";

/** Files that safetensors' own writer made. */
const files = ["llama", "llama-uneven", "qwen2", "phi3", "mixtral"].flatMap((family) =>
  readdirSync(fixture(`tiny/${family}`), { recursive: true, encoding: "utf8" })
    .filter((name) => /^[^.]+\/.*\.safetensors$/.test(name))
    .map((name) => join(`tiny/${family}`, name)),
);

describe("the layout of a safetensors file to be written", () => {
  it("has files to be compared with", () => assert.ok(files.length >= 10, String(files.length)));

  for (const name of files) {
    it(`is that of safetensors' own writer, header and all: ${name}`, () => {
      const file = SafetensorsFile.open(fixture(name));
      const tensors = [...file.tensors.values()].reverse();
      file.close();
      const layout = layOutFile(tensors, []);
      const expected = readFileSync(fixture(name));
      assert.equal(layout.dataStart + layout.dataBytes, expected.length);
      assert.deepEqual(Buffer.from(formatHeader(layout, [])), expected.subarray(0, layout.dataStart));
    });
  }

  const shape = fc.array(fc.nat(12), { maxLength: 3 });
  const spec = fc.record({ name: fc.string({ unit: "binary" }), dtype: fc.constantFrom(...DTYPES), shape });
  const specs = fc
    .uniqueArray(spec, { selector: ({ name }) => name, maxLength: 12 })
    .map((tensors) => tensors.filter(({ name }) => name !== "__metadata__"));

  it("can be read back, whatever the tensors, and whatever becomes of those that were deferred", () => {
    fc.assert(
      fc.property(specs, fc.nat(12), fc.nat(4), (tensors, count, less) => {
        const [deferred, known] = [tensors.slice(0, count), tensors.slice(count)];
        const layout = layOutFile(known, deferred);
        const settled = deferred.map((tensor) => ({
          ...tensor,
          shape: tensor.shape.map((extent) => Math.max(0, extent - less)),
        }));
        const places = layOutDeferred(layout, settled);
        const header = formatHeader(layout, places);
        assert.equal(header.length % 8, 0);
        const dataBytes = places.at(-1)?.end ?? layout.dataBytes;
        const { entries, metadata } = parseHeader(header.subarray(LENGTH_BYTES), dataBytes, "test");
        assert.equal(metadata.get("format"), "pt");
        const described = (specs: readonly TensorSpec[]) =>
          new Map(specs.map((each) => [each.name, [each.dtype, each.shape]]));
        assert.deepEqual(described(entries), described([...known, ...settled]));
      }),
    );
  });

  it("puts what is deferred last, whatever its dtype", () => {
    const known = [{ name: "b", dtype: "u8", shape: [3] } as const, { name: "a", dtype: "f32", shape: [2] } as const];
    const layout = layOutFile(known, [{ name: "0", dtype: "i64", shape: [9] }]);
    assert.deepEqual(
      layout.entries.map(({ name, begin, end }) => [name, begin, end]),
      [
        ["a", 0, 8],
        ["b", 8, 11],
      ],
    );
    const [place] = layOutDeferred(layout, [{ name: "0", dtype: "i64", shape: [1] }]);
    assert.deepEqual([place?.begin, place?.end], [11, 19]);
  });
});
