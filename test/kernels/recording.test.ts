import assert from "node:assert/strict";
import type { AllReduce } from "../../src/collectives/collective.js";
import { createRegion, STATUS } from "../../src/collectives/region.js";
import { abortRegion, createSharedMemoryCollective } from "../../src/collectives/shared-memory.js";
import { f32Of, i32Of } from "../../src/core/tensor.js";
import { createNativeKernels } from "../../src/kernels/native.js";
import { simulatedKernels } from "../../src/testing/simulated-kernels.js";
import { bitsOf, floats, integers, loadedAddon, zeros } from "./tensors.js";

const kernels = createNativeKernels();

/** Rows of 8 elements, and what kernels make of them. */
function operands() {
  const x = floats("f32", [2, 8], [...Array(16).keys()]);
  const weight = floats("f32", [8], [1, 2, 3, 4, 5, 6, 7, 8]);
  const table = floats("f32", [4, 8], [...Array(32).keys()]);
  const ids = integers([2], [3, 1]);
  const out = zeros("f32", [2, 8]);
  const tensors = { x, weight, table, ids, out };
  const bound = {
    x: kernels.bind(x),
    weight: kernels.bind(weight),
    table: kernels.bind(table),
    ids: kernels.bind(ids),
    out: kernels.bind(out),
  };
  const make = (): string => {
    kernels.gatherRows(bound.x, bound.table, bound.ids, 0, 2);
    kernels.rmsNorm(bound.out, bound.x, bound.weight, 2, 1e-5);
    return "made";
  };
  return { tensors, bound, make };
}

function record<Result>(make: () => Result) {
  assert.ok(kernels.record !== undefined);
  return kernels.record(make);
}

describe("calls of native kernels that were written down", () => {
  it("are made while they are written down", () => {
    const { tensors, make } = operands();
    const { result } = record(make);
    assert.equal(result, "made");
    assert.notDeepEqual(bitsOf(tensors.out), new Array(16).fill(0));
  });

  it("are the same calls when they are made again, on what the operands hold by then", () => {
    const [{ tensors, make }, other] = [operands(), operands()];
    const { replay } = record(make);
    for (const { ids, table } of [tensors, other.tensors]) {
      i32Of(ids).set([0, 2]);
      f32Of(table).fill(0.75, 16, 20);
    }
    replay();
    other.make();
    assert.deepEqual(bitsOf(tensors.out), bitsOf(other.tensors.out));
    replay();
    assert.deepEqual(bitsOf(tensors.out), bitsOf(other.tensors.out));
  });

  it("are checked again: an index that has become wrong throws as in the call, and ends the replay", () => {
    const { tensors, make } = operands();
    const { replay } = record(make);
    const before = bitsOf(tensors.out);
    i32Of(tensors.ids)[1] = 4;
    f32Of(tensors.weight).fill(0);
    assert.throws(replay, { name: "RangeError", message: /^gatherRows: expected indices\[1\] to be from 0 to 3/ });
    assert.deepEqual(bitsOf(tensors.out), before);
  });

  it("refuse operands that were released, whose handles nobody else gets", () => {
    const { bound, make } = operands();
    const { replay } = record(make);
    kernels.release(bound.weight);
    const another = kernels.bind(zeros("f32", [8]));
    assert.throws(replay, { name: "RangeError", message: /^rmsNorm: expected a bound handle for weight/ });
    kernels.release(another);
  });

  it("are forgotten where one of them throws; others can be written down afterwards", () => {
    const { tensors, bound, make } = operands();
    const wrong = (): void => {
      make();
      kernels.rmsNorm(bound.out, bound.x, bound.weight, 3, 1e-5);
    };
    assert.throws(() => record(wrong), { name: "RangeError", message: /^rmsNorm/ });
    const { replay } = record(make);
    f32Of(tensors.out).fill(0);
    replay();
    assert.notDeepEqual(bitsOf(tensors.out), new Array(16).fill(0));
  });

  it("are written down in one place at a time", () => {
    const { make } = operands();
    assert.throws(() => record(() => record(make)), { name: "RangeError", message: /one recording at a time/ });
    assert.equal(record(make).result, "made");
  });

  it("tell how long each of them takes", () => {
    const { make } = operands();
    const { replay } = record(make);
    const micros = new Float64Array(4).fill(-1);
    replay(micros);
    assert.ok(micros.every((us) => us >= 0));
    assert.throws(() => replay(new Float64Array(3)), { name: "RangeError", message: /32 aligned bytes/ });
  });

  it("are gone once they are released, and others do not take their place", () => {
    const { make } = operands();
    const [released, kept] = [record(make), record(make)];
    released.release();
    const later = record(make);
    for (const use of [released.replay, () => released.replay(new Float64Array(4)), released.release]) {
      assert.throws(use, { name: "RangeError", message: /expected a recording but received/ });
    }
    assert.equal(kept.replay(), 0);
    assert.equal(later.replay(), 0);
  });

  it("are released with the operands of a simulation", () => {
    const simulated = simulatedKernels("native");
    const [own, other] = [operands(), simulated.kernels.record?.(() => 1)];
    const again = simulated.kernels.record?.(() => own.make());
    again?.release();
    simulated.release();
    for (const recorded of [other, again]) {
      assert.throws(() => recorded?.replay(), { name: "RangeError", message: /expected a recording but received/ });
    }
  });

  it("are none where none were made", () => {
    const { result, replay } = record(() => 7);
    assert.equal(result, 7);
    replay(new Float64Array(0));
  });

  it("are known to the addon that wrote them down, and nothing else is taken for them", () => {
    const addon = loadedAddon();
    for (const wrong of [undefined, "1", {}, new Float64Array(1)]) {
      for (const take of [addon.replay, addon.releaseRecording]) {
        assert.throws(() => Reflect.apply(take, addon, [wrong]), TypeError);
      }
    }
    for (const wrong of [0, -1, 0.5, 2 ** 53, 2 ** 64]) {
      for (const take of [addon.replay, addon.releaseRecording]) {
        assert.throws(() => Reflect.apply(take, addon, [wrong]), {
          name: "RangeError",
          message: /expected a recording/,
        });
      }
    }
    assert.throws(() => addon.stopRecording(), { name: "RangeError", message: /recording in progress/ });
  });

  it("are collectives of the addon, too: one that does not come about ends the replay, and is named in the error", () => {
    const region = createRegion({ worldSize: 1 });
    const collective = createSharedMemoryCollective(region, 0, { timeoutMs: 1000, native: true });
    const { tensors, bound, make } = operands();
    const requests = ["first", "second"].map((site): AllReduce => {
      return { kind: "allReduce", site, data: bound.x, count: 8 };
    });
    const { replay } = record(() => {
      for (const request of requests) collective.execute(request);
      make();
    });
    const micros = new Float64Array(8).fill(-1);
    const outcome = replay(micros);
    assert.equal(outcome, 0);
    assert.ok(micros.every((us) => us >= 0));
    collective.replayed?.(requests, outcome);
    f32Of(tensors.out).fill(0);
    abortRegion(region);
    const failed = replay();
    assert.equal(failed, STATUS.givenUp);
    assert.deepEqual(bitsOf(tensors.out), new Array(16).fill(0));
    assert.throws(() => collective.replayed?.(requests, failed), { code: "COLLECTIVE_ABORTED", message: /for first/ });
    assert.throws(() => collective.replayed?.(requests, 256 + STATUS.aborted), {
      code: "COLLECTIVE_ABORTED",
      message: /for second/,
    });
  });
});
