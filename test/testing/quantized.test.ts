import assert from "node:assert/strict";
import { plugin } from "@shardloom/bitsandbytes";
import {
  expectOwnedOnce,
  expectRanksAgree,
  expectReassembles,
  expectSameLogits,
  type SimulateOptions,
  simulate,
} from "../../src/testing/index.js";
import { fixture } from "../fixture.js";
import { manyHeads, publishedConfig } from "./models.js";

const plugins = [plugin];

/** All that must hold of a quantized model at any number of ranks. */
async function expectInvariant(options: SimulateOptions & { readonly shapeOnly?: false }): Promise<void> {
  const simulation = await simulate({ ...options, plugins });
  const shapes = await simulate({ ...options, plugins, shapeOnly: true });
  try {
    assert.deepEqual(expectOwnedOnce(shapes), expectOwnedOnce(simulation));
    assert.deepEqual(shapes.ownership.tensors, simulation.ownership.tensors);
    const { matrices } = await expectReassembles(simulation);
    assert.ok(matrices > 5);
    expectSameLogits(simulation, await simulation.unsharded(), 1e-3);
    expectRanksAgree(simulation);
  } finally {
    await simulation.close();
  }
}

describe("simulated groups with bitsandbytes' formats", () => {
  const onDisk = [
    { model: "llama/nf4-dq", worldSizes: [2, 3, 4] },
    { model: "llama/int8", worldSizes: [3, 4] },
    { model: "llama-uneven/nf4-skip", worldSizes: [4, 5] },
    { model: "mistral/nf4", worldSizes: [3, 8] },
    { model: "phi3/nf4", worldSizes: [4, 6] },
  ];
  for (const { model, worldSizes } of onDisk) {
    it(`are the same model at any size, with and without bytes: ${model} on ${worldSizes.join(", ")} ranks`, async () => {
      for (const worldSize of worldSizes) await expectInvariant({ model: fixture(`tiny/${model}`), worldSize });
    });
  }

  it("are so as well when made-up weights are quantized while loading, whatever does not line up", async () => {
    const sizes = [
      { intermediate_size: 70 },
      { intermediate_size: 176 },
      { intermediate_size: 100, head_dim: 12 },
      { intermediate_size: 96, head_dim: 34 },
    ];
    for (const size of sizes) {
      for (const worldSize of [2, 3, 6]) {
        const config = manyHeads(6, 3, { num_hidden_layers: 1, ...size });
        await expectInvariant({ config, worldSize, seed: 5, quantization: "bitsandbytes" });
      }
    }
  });

  it("plan a large model that would be quantized while loading, reading nothing", async () => {
    const config = publishedConfig("qwen3-32b");
    const options = { config, worldSize: 8, plugins, shapeOnly: true } as const;
    const quantized = await simulate({ ...options, quantization: "bitsandbytes" });
    const plain = await simulate(options);
    expectOwnedOnce(quantized);
    const bytes = (simulation: typeof plain) => simulation.ownership.ranks[0]?.parameterBytes ?? 0;
    const ratio = bytes(quantized) / bytes(plain);
    assert.ok(ratio > 0.25 && ratio < 0.35, `${ratio}`);
    assert.equal(quantized.ownership.ranks[0]?.bytesRead, 0);
  });
});
