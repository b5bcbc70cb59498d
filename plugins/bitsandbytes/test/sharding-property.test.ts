/** Shards of quantized weights at any cut. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { elementCount } from "shardloom/plugin";
import { checkpointOf } from "shardloom/testing";
import {
  dequantizeSlowly,
  floatsOfTensor,
  inFlightConfig,
  memoryTensor,
  randomValues,
  storedConfig,
  storeFourBit,
  storeInt8,
  storeRandom,
  tensorOf,
  viewOf,
} from "./fixture.js";
import { column, expectShards, loadRanks, merged, replicated, row, splitAt } from "./layer-fixture.js";

describe("property: any shape, block size and cut", () => {
  const cases = fc.record({
    rows: fc.integer({ min: 1, max: 12 }),
    columns: fc.oneof(
      fc.integer({ min: 1, max: 150 }),
      fc.integer({ min: 1, max: 12 }).map((units) => units * 16),
    ),
    blockSize: fc.constantFrom(32, 64, 128, 256, 4096),
    type: fc.constantFrom("nf4", "fp4"),
    doubleQuant: fc.boolean(),
    ranks: fc.integer({ min: 1, max: 5 }),
    cuts: fc.array(fc.nat(), { minLength: 4, maxLength: 4 }),
    unit: fc.constantFrom(1, 2, 8, 16, 32),
  });
  /** Distinct cuts on multiples of `unit` where there are enough. */
  const cut = (total: number, ranks: number, unit: number, cuts: readonly number[]) => {
    const units = Math.floor((total - 1) / unit);
    const ends = [...new Set(cuts.slice(0, ranks - 1).map((value) => (units === 0 ? 0 : (1 + (value % units)) * unit)))]
      .filter((end) => end > 0 && end < total)
      .sort((a, b) => a - b);
    return splitAt(total, ...ends);
  };

  it("stored: column, row, merged and replicated shards are slices of the whole", () => {
    fc.assert(
      fc.property(cases, ({ rows, columns, ranks, cuts, unit, ...options }) => {
        const tensors = [
          ...storeRandom("a", rows, columns, options),
          ...storeRandom("b", rows, columns, { ...options, blockSize: 64 }),
        ];
        const [a, b] = [dequantizeSlowly(tensors, "a"), dequantizeSlowly(tensors, "b")];
        const wholeOf = ({ prefix }: { prefix: string }) => (prefix === "a" ? a : b);
        const byRows = cut(rows, ranks, 1, cuts);
        const parts = ["a", "b"].map((name) => ({ name, outputSize: rows, split: byRows }));
        const fused = merged("ab", columns, parts);
        expectShards(loadRanks(byRows.length, checkpointOf(tensors), storedConfig, fused), wholeOf);
        expectShards(
          loadRanks(byRows.length, checkpointOf(tensors), storedConfig, column("a", rows, columns, byRows)),
          wholeOf,
        );
        const byColumns = cut(columns, ranks, unit, cuts);
        expectShards(
          loadRanks(byColumns.length, checkpointOf(tensors), storedConfig, row("b", rows, columns, byColumns)),
          wholeOf,
        );
      }),
      { numRuns: 150 },
    );
  });

  it("in flight: at every cut the values of the weight that was quantized whole", () => {
    fc.assert(
      fc.property(cases, fc.integer(), ({ rows, columns, ranks, cuts, unit, ...options }, seed) => {
        const values = randomValues(rows * columns, seed);
        const source = checkpointOf([memoryTensor("a.weight", "f32", [rows, columns], values)]);
        const whole = dequantizeSlowly(storeFourBit("a", [rows, columns], values, options), "a");
        const config = (checkpoint: typeof source) => inFlightConfig(checkpoint, options);
        const byRows = cut(rows, ranks, 1, cuts);
        const byColumns = cut(columns, ranks, unit, cuts);
        expectShards(loadRanks(byRows.length, source, config, column("a", rows, columns, byRows)), () => whole);
        expectShards(loadRanks(byColumns.length, source, config, row("a", rows, columns, byColumns)), () => whole);
      }),
      { numRuns: 150 },
    );
  });

  it("int8: columns and rows, stored and in flight", () => {
    fc.assert(
      fc.property(cases, fc.integer(), ({ rows, columns, ranks, cuts }, seed) => {
        const values = randomValues(rows * columns, seed);
        const stored = storeInt8("a", [rows, columns], values);
        const whole = floatsOfTensor(tensorOf(viewOf(stored), "a.weight"));
        const source = checkpointOf([memoryTensor("a.weight", "f32", [rows, columns], values)]);
        const config = (checkpoint: typeof source) => inFlightConfig(checkpoint, { type: "int8" });
        const byRows = cut(rows, ranks, 1, cuts);
        const byColumns = cut(columns, ranks, 1, cuts);
        for (const build of [column("a", rows, columns, byRows)]) {
          expectShards(loadRanks(byRows.length, checkpointOf(stored), storedConfig, build), () => whole);
          expectShards(loadRanks(byRows.length, source, config, build), () => whole);
        }
        for (const build of [row("a", rows, columns, byColumns)]) {
          expectShards(loadRanks(byColumns.length, checkpointOf(stored), storedConfig, build), () => whole);
          expectShards(loadRanks(byColumns.length, source, config, build), () => whole);
        }
      }),
      { numRuns: 100 },
    );
  });

  it("groups of inputs divide the rows and the blocks, and there are as many scales as groups", () => {
    fc.assert(
      fc.property(cases, ({ rows, columns, blockSize, doubleQuant: nested }) => {
        const tensors = storeRandom("a", rows, columns, { blockSize, doubleQuant: nested });
        const [linears = []] = loadRanks(1, checkpointOf(tensors), storedConfig, replicated("a", rows, columns));
        const weight = linears[0]?.method.executionWeights()[0]?.weight ?? assert.fail();
        if (weight.format !== "code4") {
          assert.ok(columns % 16 !== 0);
          return;
        }
        assert.equal(columns % weight.blockSize, 0);
        assert.equal(blockSize % weight.blockSize, 0);
        assert.equal(weight.scales.rows * weight.scales.columns, (rows * columns) / weight.blockSize);
        assert.equal(elementCount(weight.codes.tensor.shape), (rows * columns) / 2);
      }),
    );
  });
});
