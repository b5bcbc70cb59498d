/** Nothing in a checkpoint is believed: what does not fit together is an error that names the tensor. */
import assert from "node:assert/strict";
import type { CheckpointTensor } from "shardloom/plugin";
import {
  bytesOfTensor,
  hasCode,
  memoryTensor,
  openFixture,
  randomValues,
  storeFourBit,
  storeInt8,
  viewOf,
  withTensors,
} from "./fixture.js";

const values = randomValues(300 * 64, 1);
const plain = storeFourBit("X", [300, 64], values);
const nested = storeFourBit("X", [300, 64], values, { doubleQuant: true });
const int8 = storeInt8("X", [300, 64], values);

const floats = (name: string, count: number): CheckpointTensor =>
  memoryTensor(name, "f32", [count], new Float32Array(count));
const text = (name: string, content: object): CheckpointTensor => {
  const bytes = new TextEncoder().encode(JSON.stringify(content));
  return memoryTensor(name, "u8", [bytes.length], bytes);
};
const state = { quant_type: "nf4", blocksize: 64, dtype: "bfloat16", shape: [300, 64] };
const STATE = "X.weight.quant_state.bitsandbytes__nf4";

interface Case {
  readonly what: string;
  readonly base: readonly CheckpointTensor[];
  readonly changes: Readonly<Record<string, CheckpointTensor | null>>;
  readonly code: string;
  readonly tensor: string;
}

const cases: readonly Case[] = [
  { what: "no quant state", base: plain, changes: { [STATE]: null }, code: "MISSING_QUANT_STATE", tensor: "X.weight" },
  {
    what: "no absmax",
    base: plain,
    changes: { "X.weight.absmax": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "no codebook",
    base: plain,
    changes: { "X.weight.quant_map": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "no nested absmax",
    base: nested,
    changes: { "X.weight.nested_absmax": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "no nested map",
    base: nested,
    changes: { "X.weight.nested_quant_map": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "two quant states",
    base: plain,
    changes: {
      "X.weight.quant_state.bitsandbytes__fp4": text("X.weight.quant_state.bitsandbytes__fp4", {
        ...state,
        quant_type: "fp4",
      }),
    },
    code: "DUPLICATE_QUANT_STATE",
    tensor: "X.weight.quant_state.bitsandbytes__fp4",
  },
  {
    what: "a state of another library",
    base: plain,
    changes: { "X.weight.quant_state.other": text("X.weight.quant_state.other", state) },
    code: "INVALID_QUANT_STATE",
    tensor: "X.weight.quant_state.other",
  },
  {
    what: "a state too long to be one",
    base: plain,
    changes: { [STATE]: { ...text(STATE, state), shape: [2 ** 40], read: () => assert.fail("it was read") } },
    code: "INVALID_QUANT_STATE",
    tensor: STATE,
  },
  {
    what: "a state that is no vector of bytes",
    base: plain,
    changes: { [STATE]: floats(STATE, 10) },
    code: "INVALID_QUANT_STATE",
    tensor: STATE,
  },
  {
    what: "a shape of more elements than there are codes",
    base: plain,
    changes: { [STATE]: text(STATE, { ...state, shape: [301, 64] }) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight",
  },
  {
    what: "fewer codes than elements",
    base: plain,
    changes: { "X.weight": memoryTensor("X.weight", "u8", [9599, 1], new Uint8Array(9599)) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight",
  },
  {
    what: "a block size other than that of absmax",
    base: plain,
    changes: { [STATE]: text(STATE, { ...state, blocksize: 128 }) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight.absmax",
  },
  {
    what: "absmax too short",
    base: plain,
    changes: { "X.weight.absmax": floats("X.weight.absmax", 299) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight.absmax",
  },
  {
    what: "absmax in 8 bits, and no nested state",
    base: plain,
    changes: { "X.weight.absmax": memoryTensor("X.weight.absmax", "u8", [300], new Uint8Array(300)) },
    code: "DTYPE_MISMATCH",
    tensor: "X.weight.absmax",
  },
  {
    what: "absmax in f32, and a nested state",
    base: nested,
    changes: { "X.weight.absmax": floats("X.weight.absmax", 300) },
    code: "DTYPE_MISMATCH",
    tensor: "X.weight.absmax",
  },
  {
    what: "a nested map, and no nested state",
    base: plain,
    changes: { "X.weight.nested_quant_map": floats("X.weight.nested_quant_map", 256) },
    code: "INVALID_QUANT_STATE",
    tensor: "X.weight.nested_quant_map",
  },
  {
    what: "nested absmax too long",
    base: nested,
    changes: { "X.weight.nested_absmax": floats("X.weight.nested_absmax", 3) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight.nested_absmax",
  },
  {
    what: "a nested map of 255",
    base: nested,
    changes: { "X.weight.nested_quant_map": floats("X.weight.nested_quant_map", 255) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight.nested_quant_map",
  },
  {
    what: "a codebook of 8",
    base: plain,
    changes: { "X.weight.quant_map": floats("X.weight.quant_map", 8) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight.quant_map",
  },
  {
    what: "a codebook of zeros",
    base: plain,
    changes: { "X.weight.quant_map": floats("X.weight.quant_map", 16) },
    code: "QUANT_MAP_MISMATCH",
    tensor: "X.weight.quant_map",
  },
  {
    what: "sidecars without their weight",
    base: plain,
    changes: { "X.weight": null },
    code: "ORPHAN_QUANT_STATE",
    tensor: STATE,
  },
  {
    what: "an absmax that belongs to nothing",
    base: int8,
    changes: { "Y.weight.absmax": floats("Y.weight.absmax", 1) },
    code: "ORPHAN_QUANT_STATE",
    tensor: "Y.weight.absmax",
  },
  {
    what: "bytes without absmax",
    base: plain,
    changes: { "Y.weight": memoryTensor("Y.weight", "u8", [2, 1], [0, 0]) },
    code: "MISSING_QUANT_STATE",
    tensor: "Y.weight",
  },
  {
    what: "int8 without the scales of its rows",
    base: int8,
    changes: { "X.SCB": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "int8 without any sidecar",
    base: int8,
    changes: { "X.SCB": null, "X.weight_format": null },
    code: "MISSING_QUANT_STATE",
    tensor: "X.weight",
  },
  {
    what: "row scales without a weight",
    base: int8,
    changes: { "X.weight": null },
    code: "ORPHAN_QUANT_STATE",
    tensor: "X.SCB",
  },
  {
    what: "row scales too few",
    base: int8,
    changes: { "X.SCB": floats("X.SCB", 299) },
    code: "SHAPE_MISMATCH",
    tensor: "X.SCB",
  },
  {
    what: "row scales as integers",
    base: int8,
    changes: { "X.SCB": memoryTensor("X.SCB", "i32", [300], new Int32Array(300)) },
    code: "DTYPE_MISMATCH",
    tensor: "X.SCB",
  },
  {
    what: "row scales beside floats",
    base: int8,
    changes: { "X.weight": floats("X.weight", 300) },
    code: "DTYPE_MISMATCH",
    tensor: "X.weight",
  },
  {
    what: "int8 that is no matrix",
    base: int8,
    changes: { "X.weight": memoryTensor("X.weight", "i8", [300], new Int8Array(300)) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight",
  },
  {
    what: "a weight format of two bytes",
    base: int8,
    changes: { "X.weight_format": memoryTensor("X.weight_format", "u8", [2], [0, 0]) },
    code: "SHAPE_MISMATCH",
    tensor: "X.weight_format",
  },
  {
    what: "a weight that is quantized twice over",
    base: plain,
    changes: { "X.SCB": floats("X.SCB", 300) },
    code: "INVALID_QUANT_STATE",
    tensor: "X.weight.quant_state.bitsandbytes__nf4",
  },
];

describe("a damaged or hostile checkpoint", () => {
  for (const { what, base, changes, code, tensor } of cases) {
    it(`with ${what} is refused by ${code}`, () => {
      assert.throws(() => viewOf(withTensors(base, changes)), hasCode(code, tensor));
    });
  }

  it("names file, expected and received", () => {
    const broken = withTensors(plain, { "X.weight.absmax": floats("X.weight.absmax", 299) });
    assert.throws(
      () => viewOf(broken),
      (error: unknown) => {
        const { details, message } = Object(error);
        assert.equal(details.file, "memory.safetensors");
        assert.match(message, /expected \[300\] f32 but received \[299\] f32/);
        return true;
      },
    );
  });

  it("may have a codebook that was rounded otherwise, but no other one", () => {
    const map = new Float32Array(
      bytesOfTensor(plain.find(({ name }) => name.endsWith("quant_map")) ?? assert.fail()).buffer,
    );
    const moved = (by: number) =>
      withTensors(plain, {
        "X.weight.quant_map": memoryTensor(
          "X.weight.quant_map",
          "f32",
          [16],
          map.map((value, i) => value + (i === 3 ? by : 0)),
        ),
      });
    assert.doesNotThrow(() => viewOf(moved(5e-7)));
    assert.throws(() => viewOf(moved(1e-3)), hasCode("QUANT_MAP_MISMATCH", "X.weight.quant_map"));
    assert.throws(() => viewOf(moved(Number.NaN)), hasCode("QUANT_MAP_MISMATCH", "X.weight.quant_map"));
  });

  for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const scales = (name: string, count: number): CheckpointTensor => {
      return memoryTensor(name, "f32", [count], new Float32Array(count).fill(1).fill(value, count - 1));
    };
    const sources: [string, readonly CheckpointTensor[], string, number][] = [
      ["absmax", plain, "X.weight.absmax", 300],
      ["nested absmax", nested, "X.weight.nested_absmax", 2],
      ["nested map", nested, "X.weight.nested_quant_map", 256],
      ["row scale", int8, "X.SCB", 300],
    ];
    for (const [what, base, name, count] of sources) {
      it(`with ${value} as ${what} is refused when it is read`, () => {
        const tensor =
          viewOf(withTensors(base, { [name]: scales(name, count) })).tensors.get("X.weight") ?? assert.fail();
        assert.throws(() => bytesOfTensor(tensor), hasCode("NON_FINITE_SCALE", name));
      });
    }
  }

  it("cut short anywhere in a fixture's table is refused, never read past its end", () => {
    const tensors = [...openFixture("llama/nf4-dq").tensors.values()].filter(({ name }) =>
      name.startsWith("model.layers.0.mlp.up_proj"),
    );
    for (const dropped of tensors) {
      const rest = tensors.filter((tensor) => tensor !== dropped);
      assert.throws(
        () => viewOf(rest),
        hasCode(dropped.name.endsWith("_proj.weight") ? "ORPHAN_QUANT_STATE" : "MISSING_QUANT_STATE"),
      );
    }
  });
});
