import assert from "node:assert/strict";
import fc from "fast-check";
import type { CheckpointTensor } from "shardloom/plugin";
import { formatFloat, formatQuantState, parseQuantState } from "../src/quant-state.js";
import { bytesOfTensor, hasCode, memoryTensor, openFixture } from "./fixture.js";

const NAME = "X.weight.quant_state.bitsandbytes__nf4";

const good = {
  quant_type: "nf4",
  blocksize: 64,
  dtype: "bfloat16",
  shape: [4, 32],
  nested_blocksize: 256,
  nested_dtype: "float32",
  nested_offset: 0.25,
};

function stateTensor(bytes: Uint8Array, name = NAME): CheckpointTensor {
  return memoryTensor(name, "u8", [bytes.length], bytes);
}

function parse(text: string, name = NAME): ReturnType<typeof parseQuantState> {
  const bytes = new TextEncoder().encode(text);
  return parseQuantState(bytes, stateTensor(bytes, name));
}

describe("quant state", () => {
  for (const model of ["llama/nf4", "llama/nf4-dq", "llama/fp4", "phi3/nf4"]) {
    it(`${model}: every state read and written again has the bytes that bitsandbytes wrote`, () => {
      const states = [...openFixture(model).tensors.values()].filter(({ name }) => name.includes("quant_state"));
      assert.ok(states.length >= 8);
      for (const tensor of states) {
        const bytes = bytesOfTensor(tensor);
        assert.deepEqual(
          new TextDecoder().decode(formatQuantState(parseQuantState(bytes, tensor))),
          new TextDecoder().decode(bytes),
        );
      }
    });
  }

  it("takes the block size from here, whatever it is", () => {
    for (const blocksize of [32, 128, 4096])
      assert.equal(parse(JSON.stringify({ ...good, blocksize })).blockSize, blocksize);
  });

  it("rounds the nested offset to f32, whatever the dtype of the model", () => {
    for (const dtype of ["float16", "bfloat16", "float32"]) {
      const { nested } = parse(JSON.stringify({ ...good, dtype, nested_offset: 0.1 }));
      assert.equal(nested?.offset, Math.fround(0.1));
    }
  });

  const broken: Record<string, string> = {
    "JSON with NaN, which Python writes": JSON.stringify(good).replace("0.25", "NaN"),
    "JSON with Infinity": JSON.stringify(good).replace("0.25", "Infinity"),
    "JSON that ends early": JSON.stringify(good).slice(0, -2),
    "a JSON array": "[1]",
    "an unknown type": JSON.stringify({ ...good, quant_type: "int4" }),
    "a type other than the name's": JSON.stringify({ ...good, quant_type: "fp4" }),
    "an unknown dtype": JSON.stringify({ ...good, dtype: "float64" }),
    "no shape": JSON.stringify({ ...good, shape: null }),
    "an empty shape": JSON.stringify({ ...good, shape: [] }),
    "a negative extent": JSON.stringify({ ...good, shape: [-4, 32] }),
    "an extent of zero": JSON.stringify({ ...good, shape: [0, 32] }),
    "half an extent": JSON.stringify({ ...good, shape: [0.5, 32] }),
    "an extent that is text": JSON.stringify({ ...good, shape: ["4", 32] }),
    "a product beyond 2^53": JSON.stringify({ ...good, shape: [2 ** 30, 2 ** 30] }),
    "a nested block size of zero": JSON.stringify({ ...good, nested_blocksize: 0 }),
    "nested absmax in another dtype": JSON.stringify({ ...good, nested_dtype: "float16" }),
    "a nested offset that is text": JSON.stringify({ ...good, nested_offset: "0.25" }),
    "a nested offset beyond f32": JSON.stringify({ ...good, nested_offset: 1e39 }),
    "a nested offset without the rest": JSON.stringify({
      ...good,
      nested_blocksize: undefined,
      nested_dtype: undefined,
    }),
  };
  for (const blocksize of [0, -64, 16, 48, 63, 8192, 64.5, "64", null]) {
    broken[`block size ${JSON.stringify(blocksize)}`] = JSON.stringify({ ...good, blocksize });
  }
  for (const [what, text] of Object.entries(broken)) {
    it(`refuses ${what}, naming the tensor`, () => {
      assert.throws(() => parse(text), hasCode("INVALID_QUANT_STATE", NAME));
    });
  }

  it("refuses bytes that are not UTF-8", () => {
    const bytes = Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d);
    assert.throws(() => parseQuantState(bytes, stateTensor(bytes)), hasCode("INVALID_QUANT_STATE", NAME));
  });

  it("writes floats as Python does", () => {
    // repr() of Python 3.11 for each of these doubles.
    const cases: [number, string][] = [
      [0, "0.0"],
      [-0, "-0.0"],
      [1, "1.0"],
      [0.3117542266845703, "0.3117542266845703"],
      [0.0001, "0.0001"],
      [0.00001, "1e-05"],
      [Math.fround(0.00001), "9.999999747378752e-06"],
      [1.5e-7, "1.5e-07"],
      [2 ** -149, "1.401298464324817e-45"],
      [123456789, "123456789.0"],
      [1e15, "1000000000000000.0"],
      [1e16, "1e+16"],
      [1.25e22, "1.25e+22"],
      [3.4028234663852886e38, "3.4028234663852886e+38"],
    ];
    for (const [value, text] of cases) assert.equal(formatFloat(value), text);
  });

  it("property: a float that was written reads back the same", () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (value) => {
        assert.ok(Object.is(Number(formatFloat(value)), value));
      }),
    );
  });
});
