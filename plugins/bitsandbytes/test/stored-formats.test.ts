/** What is on disk, and what it means. */
import assert from "node:assert/strict";
import { checkpointOf } from "shardloom/testing";
import {
  bytesOfTensor,
  dequantizeSlowly,
  floatsOfTensor,
  hasCode,
  memoryTensor,
  openFixture,
  openOracle,
  randomValues,
  storedConfig,
  storeFourBit,
  storeInt8,
  tensorOf,
  viewOf,
  withTensors,
} from "./fixture.js";

/** A weight of few elements, its codes and absmax given. */
function tiny(shape: readonly number[], codes: readonly number[], absmax: readonly number[]) {
  const values = new Float32Array(shape.reduce((product, extent) => product * extent, 1));
  return withTensors(storeFourBit("X", shape, values), {
    "X.weight": memoryTensor("X.weight", "u8", [codes.length, 1], codes),
    "X.weight.absmax": memoryTensor("X.weight.absmax", "f32", [absmax.length], Float32Array.from(absmax)),
  });
}

describe("4-bit weights on disk", () => {
  it("holds the first element of a pair in the high half of a byte", () => {
    assert.deepEqual([...floatsOfTensor(tensorOf(viewOf(tiny([1, 2], [0x7f], [2])), "X.weight"))], [0, 2]);
  });

  it("ignores the last half byte of an odd number of elements, and takes no other number of bytes", () => {
    for (const last of [0xf0, 0xf7, 0xff]) {
      assert.deepEqual([...floatsOfTensor(tensorOf(viewOf(tiny([1, 3], [0x0f, last], [1])), "X.weight"))], [-1, 1, 1]);
    }
    for (const bytes of [[0x0f], [0x0f, 0xf0, 0]]) {
      assert.throws(() => viewOf(tiny([1, 3], bytes, [1])), hasCode("SHAPE_MISMATCH", "X.weight"));
    }
  });

  it("expands nested absmax with two roundings, and changes the group at block 256", () => {
    const shape = [300, 64];
    const values = randomValues(300 * 64, 1);
    for (let i = 256 * 64; i < values.length; i++) values[i] = (values[i] ?? 0) * 40;
    const tensors = storeFourBit("X", shape, values, { doubleQuant: true });
    assert.deepEqual(tensors.find(({ name }) => name === "X.weight.nested_absmax")?.shape, [2]);
    const expected = dequantizeSlowly(tensors, "X");
    assert.deepEqual(floatsOfTensor(tensorOf(viewOf(tensors), "X.weight")), expected);

    // With one rounding some scale would be another: this test would not hold if that were so of none.
    const read = (key: string): Uint8Array =>
      bytesOfTensor(tensors.find(({ name }) => name === `X.weight.${key}`) ?? assert.fail());
    const map = new Float32Array(read("nested_quant_map").buffer);
    const nested = new Float32Array(read("nested_absmax").buffer);
    const state = JSON.parse(new TextDecoder().decode(read("quant_state.bitsandbytes__nf4")));
    const differing = [...read("absmax")].filter((code, block) => {
      const [a, b] = [map[code] ?? 0, nested[Math.floor(block / 256)] ?? 0];
      return Math.fround(Math.fround(a * b) + state.nested_offset) !== Math.fround(a * b + state.nested_offset);
    });
    assert.ok(differing.length > 0);
  });

  it("reads nested absmax with the map that is stored, not with its own", () => {
    const values = randomValues(64 * 4, 2);
    const tensors = storeFourBit("X", [4, 64], values, { doubleQuant: true });
    const map = new Float32Array(
      bytesOfTensor(tensors.find(({ name }) => name.endsWith("nested_quant_map")) ?? assert.fail()).buffer,
    );
    const changed = withTensors(tensors, {
      "X.weight.nested_quant_map": memoryTensor(
        "X.weight.nested_quant_map",
        "f32",
        [256],
        map.map((value) => value * 0.5),
      ),
    });
    assert.deepEqual(floatsOfTensor(tensorOf(viewOf(changed), "X.weight")), dequantizeSlowly(changed, "X"));
    assert.notDeepEqual(dequantizeSlowly(changed, "X"), dequantizeSlowly(tensors, "X"));
  });

  for (const blockSize of [32, 64, 128, 4096]) {
    it(`reads blocks of ${blockSize}, which no config states`, () => {
      const tensors = storeFourBit("X", [70, 96], randomValues(70 * 96, 3), { blockSize });
      assert.deepEqual(floatsOfTensor(tensorOf(viewOf(tensors), "X.weight")), dequantizeSlowly(tensors, "X"));
    });
  }

  it("never rounds to the dtype the weight had before: values stay f32", () => {
    const tensors = storeFourBit("X", [1, 64], randomValues(64, 4));
    const values = floatsOfTensor(tensorOf(viewOf(tensors), "X.weight"));
    assert.ok(
      values.some((value) => new Uint32Array(Float32Array.of(value).buffer).some((bits) => (bits & 0xffff) !== 0)),
    );
  });

  it("takes the bytes of codes that are declared as bf16 as they are, NaN patterns and all", () => {
    const plain = viewOf(openFixture("llama/nf4").tensors.values());
    const stored = openFixture("llama/nf4-storage-bf16");
    const other = viewOf(stored.tensors.values());
    const codes = [...stored.tensors.values()].filter(
      ({ name, dtype }) => name.endsWith("proj.weight") && dtype === "bf16",
    );
    assert.equal(codes.length, 14);
    let patterns = 0;
    for (const tensor of codes) {
      const bits = new Uint16Array(bytesOfTensor(tensor).buffer);
      patterns += bits.filter((value) => (value & 0x7fff) > 0x7f80).length;
      assert.deepEqual(floatsOfTensor(tensorOf(other, tensor.name)), floatsOfTensor(tensorOf(plain, tensor.name)));
    }
    assert.ok(patterns > 0, "no NaN among them");
  });

  it("takes a tensor of three dimensions, such as fused experts, as one grid of blocks", () => {
    const tensors = storeFourBit("X", [3, 5, 40], randomValues(600, 5));
    const view = tensorOf(viewOf(tensors), "X.weight");
    assert.deepEqual([...view.shape], [3, 5, 40]);
    assert.deepEqual(floatsOfTensor(view), dequantizeSlowly(tensors, "X"));
  });

  it("shows layers no sidecar", () => {
    for (const model of ["llama/nf4-dq", "llama/int8", "mixtral/nf4"]) {
      const names = [...viewOf(openFixture(model).tensors.values()).tensors.keys()];
      assert.deepEqual(
        names.filter((name) => !name.endsWith(".weight")),
        [],
      );
    }
  });
});

describe("values without codes, for whoever asks for none", () => {
  for (const model of [
    "llama/nf4",
    "llama/nf4-dq",
    "llama/fp4",
    "llama/int8",
    "llama-uneven/nf4-skip",
    "mixtral/nf4",
  ]) {
    it(`${model}: what bitsandbytes dequantizes, in shape and to the bit`, () => {
      const view = viewOf(openFixture(model).tensors.values());
      const oracle = openOracle(model).tensors;
      assert.ok(oracle.size >= 12);
      for (const expected of oracle.values()) {
        const received = tensorOf(view, expected.name);
        assert.deepEqual([...received.shape], [...expected.shape]);
        const [a, b] = [floatsOfTensor(received), floatsOfTensor(expected)];
        // -0 is 0 here: bitsandbytes' CPU kernel gives fp4 code 8 a sign, its others do not.
        assert.ok(
          a.every((value, i) => value === b[i]),
          expected.name,
        );
      }
    });
  }

  it("reads any range of bytes the same, wherever it starts and is put", () => {
    const { tensors } = viewOf(openFixture("llama-uneven/nf4").tensors.values());
    const tensor = tensors.get("model.layers.0.self_attn.k_proj.weight") ?? assert.fail();
    const whole = bytesOfTensor(tensor);
    for (const [start, length] of [
      [0, 1],
      [1, 2],
      [3, 8],
      [5, 4000],
      [4, 4096],
      [whole.length - 7, 7],
      [12, 0],
    ] as const) {
      for (const shift of [0, 1, 2]) {
        const memory = new Uint8Array(length + shift).subarray(shift);
        tensor.read(memory, start);
        assert.deepEqual(memory, whole.subarray(start, start + length), `${start}+${length} at ${shift}`);
      }
    }
    assert.throws(() => tensor.read(new Uint8Array(2), whole.length - 1), RangeError);
    assert.throws(() => tensor.read(new Uint8Array(2), -1), RangeError);
  });
});

describe("int8 weights on disk", () => {
  it("multiplies code and row scale, then f32(1/127): two roundings", () => {
    const codes = memoryTensor("X.weight", "i8", [1, 2], Int8Array.of(-127, 1));
    const scales = memoryTensor("X.SCB", "f32", [1], Float32Array.of(3.5));
    const constant = Math.fround(1 / 127);
    assert.equal(constant, 0.007874015718698502);
    const values = floatsOfTensor(tensorOf(viewOf([codes, scales]), "X.weight"));
    assert.deepEqual([...values], [Math.fround(-444.5 * constant), Math.fround(3.5 * constant)]);
  });

  it("takes rows only; no format byte means rows", () => {
    const tensors = storeInt8("X", [3, 5], randomValues(15, 6));
    const values = floatsOfTensor(tensorOf(viewOf(tensors), "X.weight"));
    const without = withTensors(tensors, { "X.weight_format": null });
    assert.deepEqual(floatsOfTensor(tensorOf(viewOf(without), "X.weight")), values);
    for (const format of [1, 2, 3]) {
      const other = withTensors(tensors, { "X.weight_format": memoryTensor("X.weight_format", "u8", [], [format]) });
      assert.throws(() => viewOf(other), hasCode("UNSUPPORTED_WEIGHT_FORMAT", "X.weight_format"));
    }
  });
});

describe("the view of a checkpoint", () => {
  it("reads nothing of a weight before a layer loads it, and a few hundred bytes of its sidecars", () => {
    const source = openFixture("llama/nf4-dq");
    const weights = [...source.tensors.keys()].filter((name) => name.endsWith("quant_map") && !name.includes("nested"));
    assert.ok(storedConfig(source).checkpoint !== undefined);
    assert.ok(source.bytesRead <= weights.length * 400, `${source.bytesRead} bytes for ${weights.length} weights`);
  });

  it("counts the bytes that its source reads, and closes it", () => {
    let closed = 0;
    const source = {
      ...checkpointOf(storeFourBit("X", [2, 32], randomValues(64, 7))),
      bytesRead: 5,
      close: () => void closed++,
    };
    const view = storedConfig(source).checkpoint ?? assert.fail();
    assert.equal(view.bytesRead, 5);
    view.close();
    assert.equal(closed, 1);
  });
});
