import assert from "node:assert/strict";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import type { DType } from "../../src/core/dtype.js";
import { PluginError } from "../../src/core/errors.js";
import { type PlannedCheckpoint, planCheckpoint } from "../../src/loading/checkpoint-plan.js";
import type { QuantizedTensor } from "../../src/quantization/checkpoint-quantizer.js";

function tensorOf(name: string, shape: readonly number[], dtype: DType = "f32"): CheckpointTensor {
  return { name, dtype, shape, file: "memory", read: () => assert.fail(`${name} was read while planning`) };
}

function plan(
  tensors: readonly CheckpointTensor[],
  replace: (weight: CheckpointTensor) => readonly QuantizedTensor[] | null,
  maxShardBytes = 1e9,
): PlannedCheckpoint {
  const modules = ["a", "b", "absent"];
  return planCheckpoint({ tensors, modules, plan: { settings: "{}", replace }, owner: "@a/x", maxShardBytes });
}

/** One byte an element, and a scale. */
const halved = ({ name, shape }: CheckpointTensor): QuantizedTensor[] => [
  tensorOf(name, shape, "i8"),
  tensorOf(`${name}.scale`, [1]),
];

describe("the plan of a quantized checkpoint", () => {
  const tensors = [tensorOf("norm.weight", [4]), tensorOf("a.weight", [4, 8]), tensorOf("b.weight", [2, 8])];

  it("offers weights of linear modules to the format, and keeps what it does not want", () => {
    const offered: string[] = [];
    const { tasks, quantized } = plan([...tensors, tensorOf("a.bias", [4])], (weight) => {
      offered.push(weight.name);
      return weight.name === "a.weight" ? halved(weight) : null;
    });
    assert.deepEqual(offered, ["a.weight", "b.weight"]);
    assert.deepEqual(quantized, ["a.weight"]);
    const byTensor = new Map(tasks.map((task) => [task.tensor, task]));
    assert.deepEqual(
      byTensor.get("a.weight")?.outputs.map(({ name, dtype, shape }) => [name, dtype, shape]),
      [
        ["a.weight", "i8", [4, 8]],
        ["a.weight.scale", "f32", [1]],
      ],
    );
    assert.equal(byTensor.get("a.weight")?.quantize, true);
    assert.equal(byTensor.get("b.weight")?.quantize, false);
    assert.deepEqual(
      byTensor.get("b.weight")?.outputs.map(({ name, dtype }) => [name, dtype]),
      [["b.weight", "f32"]],
    );
  });

  it("gives every byte of a file to one tensor, and every tensor to one task", () => {
    const { files, tasks, sizeBytes } = plan(tensors, halved);
    assert.deepEqual(
      files.map(({ name }) => name),
      ["model.safetensors"],
    );
    const { dataStart, dataBytes, entries } = files[0]?.layout ?? assert.fail("no file");
    assert.equal(sizeBytes, dataStart + dataBytes);
    const places = tasks
      .flatMap(({ outputs }) =>
        outputs.map(({ name, position }) => [name, (position ?? Number.NaN) - dataStart] as const),
      )
      .sort(([, a], [, b]) => a - b);
    assert.deepEqual(
      places,
      entries.map(({ name, begin }) => [name, begin]),
    );
    assert.equal(dataBytes, 16 + 32 + 4 + 16 + 4);
  });

  it("begins a file when the next tensor, with what belongs to it, would make it too large", () => {
    const many = Array.from({ length: 4 }, (_, i) => tensorOf(`n${i}`, [4]));
    const { files, tasks } = plan([...many.slice(0, 3), tensorOf("a.weight", [8, 8]), ...many.slice(3)], halved, 40);
    assert.deepEqual(
      files.map(({ layout }) => layout.entries.map(({ name }) => name)),
      [["n0", "n1"], ["n2"], ["a.weight.scale", "a.weight"], ["n3"]],
    );
    assert.deepEqual(
      files.map(({ name }) => name),
      [1, 2, 3, 4].map((i) => `model-0000${i}-of-00004.safetensors`),
    );
    for (const { tensor, fileName } of tasks) {
      const file = files.find(({ name }) => name === fileName);
      assert.ok(file?.layout.entries.some(({ name }) => name === tensor));
    }
  });

  it("starts with the largest tensors, so that no thread is left with one at the end", () => {
    const { tasks } = plan(tensors, halved);
    assert.deepEqual(
      tasks.map(({ tensor, sourceBytes }) => [tensor, sourceBytes]),
      [
        ["a.weight", 128],
        ["b.weight", 64],
        ["norm.weight", 16],
      ],
    );
  });

  it("keeps room, and no place, for tensors of which only the largest shape is known", () => {
    const deferred = { ...tensorOf("a.weight.state", [99], "u8"), settledShape: () => [1] };
    const { files, tasks, sizeBytes } = plan(tensors, (weight) => {
      return weight.name === "a.weight" ? [...halved(weight), deferred] : null;
    });
    const [file] = files;
    assert.deepEqual(file?.deferred, [{ name: "a.weight.state", dtype: "u8", shape: [99] }]);
    assert.equal(sizeBytes, (file?.layout.dataStart ?? 0) + (file?.layout.dataBytes ?? 0) + 99);
    assert.equal(tasks[0]?.outputs[2]?.position, null);
  });

  const made: readonly (readonly [unknown, string])[] = [
    [[], "an empty list"],
    [{}, "no list"],
    [[{ ...tensorOf("x", [1]), dtype: "u4" }], "an unknown dtype"],
    [[{ ...tensorOf("x", [1]), shape: [1.5] }], "a shape that is none"],
    [[{ ...tensorOf("x", [1]), shape: null }], "no shape"],
    [[{ ...tensorOf("x", [1]), name: 7 }], "no name"],
    [[tensorOf("x", [2 ** 52])], "more bytes than can be counted"],
    [[{ ...tensorOf("x", [2 ** 17], "u8"), settledShape: () => [1] }], "much that is deferred"],
    [[tensorOf("norm.weight", [1])], "the name of another tensor"],
    [[tensorOf("x", [1]), tensorOf("x", [1])], "one name twice"],
  ];
  for (const [replacement, what] of made) {
    it(`refuses ${what} from a format, naming its package and the weight`, () => {
      const replace = (weight: CheckpointTensor) => (weight.name === "a.weight" ? replacement : null);
      const request = { tensors, modules: ["a"], plan: { settings: "{}", replace }, owner: "@a/x", maxShardBytes: 1e9 };
      assert.throws(
        () => Reflect.apply(planCheckpoint, undefined, [request]),
        (error) =>
          error instanceof PluginError &&
          error.code === "INVALID_CHECKPOINT_QUANTIZER" &&
          error.details.plugin === "@a/x" &&
          error.details.tensor === "a.weight",
      );
    });
  }

  it("names the package whose hook throws", () => {
    assert.throws(
      () => plan(tensors, () => assert.fail("no")),
      (error) => error instanceof PluginError && error.code === "PLUGIN_FAILED" && error.message.includes("@a/x"),
    );
  });
});
