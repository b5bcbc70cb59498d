import assert from "node:assert/strict";
import { measureLimits } from "../../src/kernels/probe.js";
import { loadedAddon } from "./tensors.js";

const addon = loadedAddon();
/** As little as there is: the figures are not what is tested. */
const briefly = { readBytes: 2 ** 20, milliseconds: 1 };

describe("probes of the machine", () => {
  it("give a figure for everything, with one thread and with more, and leave one thread behind", () => {
    for (const threads of [1, 2, 3]) {
      const limits = measureLimits({ threads, ...briefly });
      assert.ok(limits !== null);
      assert.equal(limits.threads, threads);
      for (const { one, all } of [limits.readGBs, limits.fmaGflops, limits.dotInt8Gops]) {
        assert.ok(one > 0 && Number.isFinite(one) && all > 0 && Number.isFinite(all), JSON.stringify(limits));
      }
      if (limits.exchange === null) assert.equal(threads, 1);
      else for (const value of Object.values(limits.exchange)) assert.ok(value > 0 && Number.isFinite(value));
      assert.equal(addon.threads, 1);
    }
  });

  it("name the features of the CPU that its instruction sets need", () => {
    const needs: Record<string, readonly string[]> = {
      avx2: ["avx2", "fma", "f16c"],
      avx512: ["avx512f", "avx512bw", "avx512dq", "avx512vl"],
      avx512bf16: ["avx512_bf16", "avx512_vnni"],
      neon: ["asimd"],
    };
    for (const isa of addon.supportedIsas) {
      for (const feature of needs[isa] ?? []) assert.ok(addon.cpuFeatures.includes(feature), `${isa}: ${feature}`);
    }
  });

  it("refuse what makes no sense", () => {
    assert.throws(() => addon.probeRead(0, 1), RangeError);
    assert.throws(() => addon.probeRead(2 ** 20, 0), RangeError);
    assert.throws(() => addon.probeMultiplyAdd(0), RangeError);
    assert.throws(() => addon.probeDotInt8(1e9), RangeError);
    assert.throws(() => addon.probeForkJoin(10), /at least 2 threads/);
  });
});
