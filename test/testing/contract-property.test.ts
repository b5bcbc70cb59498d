/**
 * The whole contract at once: a model of any shape, in any format, on any number of ranks, is the model that one rank
 * holds. Every run draws other cases; SHARDLOOM_SEED repeats one.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { ShardloomError } from "../../src/core/errors.js";
import { Subject } from "../../src/testing/conformance-fixture.js";
import {
  expectOwnedOnce,
  expectRanksAgree,
  expectReassembles,
  expectSameLogits,
  type Simulation,
  simulate,
} from "../../src/testing/index.js";
import { takingVFromItsFirstRow } from "./broken-plugins/placement-faults.js";
import { type RandomModel, randomModels } from "./random-models.js";

const CASES = 500;

/**
 * How far a logit may be from that of one rank, in parts of the largest logit. Ranks sum in another order, and every sum
 * rounds to f32 (2^-24 = 6e-8); norms and softmaxes enlarge that, in models as small as these the most. The largest
 * difference that 12,000 cases have shown is 2.2e-6.
 */
const TOLERANCE = 1e-4;

const seed = Number(process.env["SHARDLOOM_SEED"] ?? Date.now() % 2 ** 31);

describe("the tensor-parallel contract", () => {
  it(`holds for ${CASES} random models on 1 to 8 ranks (SHARDLOOM_SEED=${seed})`, async () => {
    await fc.assert(fc.asyncProperty(randomModels(), holds), { numRuns: CASES, seed });
  }).timeout(300_000);

  it("is not kept by a plugin with a wrong offset, as a case of one line shows", async () => {
    const random = randomModels({ formats: ["nibbles"], nibbles: takingVFromItsFirstRow });
    const details = await fc.check(fc.asyncProperty(random, holds), { numRuns: 100, seed: 1 });
    assert.match(
      fc.defaultReportMessage(details) ?? "",
      /^Counterexample: \[\w+ of 1 layer: 2 heads of 2, 2 of them KV, hidden 4, intermediate 4, vocabulary 4, untied, float32, nibbles, seed \d+, on 2 ranks\]$/m,
    );
  });
});

async function holds(random: RandomModel): Promise<void> {
  const { worldSize } = random;
  const simulation = await load(random);
  if (simulation === null) return;
  try {
    expectOwnedOnce(simulation);
    await expectReassembles(simulation);
    const reference = await simulation.unsharded();
    const promptTokenIds = [1, 3, 0, 2];
    const largest = Math.max(...reference.logits(promptTokenIds).flatMap((row) => [...row].map(Math.abs)));
    assert.ok(Number.isFinite(largest));
    expectSameLogits(simulation, reference, TOLERANCE * largest, { promptTokenIds, decodeSteps: 2 });
    if (worldSize > 1) assert.ok(expectRanksAgree(simulation) > 0);
  } finally {
    await simulation.close();
  }
}

/** Null where the format cannot be cut as the model is, and says so. */
async function load(random: RandomModel): Promise<Simulation | null> {
  const { model, quantization, quantizationOptions, plugin, worldSize, unit } = random;
  const fixture = { name: String(random), model, quantization, quantizationOptions };
  try {
    return await simulate({ ...new Subject(plugin, fixture).options(worldSize), order: "shuffled", seed: random.seed });
  } catch (error) {
    const refused = error instanceof ShardloomError && error.code === "INEXACT_PACKING" && unit > 1;
    if (refused && (await isCutInside(random))) return null;
    throw error;
  }
}

/** Whether some rank's columns begin or end inside a storage element. */
async function isCutInside({ model, worldSize, unit }: RandomModel): Promise<boolean> {
  const { ranks } = await simulate({ config: model.config, worldSize, shapeOnly: true });
  return ranks.some(({ layers }) => layers.some(({ plan }) => plan.inputs.start % unit !== 0));
}
