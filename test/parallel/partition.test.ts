import assert from "node:assert/strict";
import fc from "fast-check";
import { PartitionError } from "../../src/core/errors.js";
import {
  rangeSize,
  splitEvenly,
  splitHeads,
  splitSize,
  splitUnits,
  splitVocabulary,
} from "../../src/parallel/partition.js";

const sizes = (split: readonly { start: number; end: number }[]): number[] => split.map(rangeSize);

describe("partition", () => {
  it("splits a size that does not divide with the first ranks getting the rest", () => {
    assert.deepEqual(sizes(splitUnits(10, 1, 4, "rows")), [3, 3, 2, 2]);
    assert.deepEqual(splitUnits(176, 64, 2, "intermediate"), [
      { start: 0, end: 128 },
      { start: 128, end: 176 },
    ]);
  });

  it("refuses an even split that does not divide, naming both numbers", () => {
    assert.throws(
      () => splitEvenly(10, 4, "output size"),
      (error: unknown) =>
        error instanceof PartitionError &&
        error.code === "UNEVEN_SPLIT" &&
        /10/.test(error.message) &&
        /4/.test(error.message),
    );
  });

  it("cuts intermediate sizes on multiples of 64 where every rank gets one, finer where not", () => {
    assert.deepEqual(sizes(splitSize(1536, 5, "intermediate")), [320, 320, 320, 320, 256]);
    assert.deepEqual(sizes(splitSize(176, 4, "intermediate")), [64, 64, 32, 16]);
    assert.deepEqual(sizes(splitSize(3, 3, "intermediate")), [1, 1, 1]);
    assert.throws(() => splitSize(3, 4, "intermediate"), PartitionError);
  });

  it("deals out whole KV groups while there are enough of them: SmolLM2's 9 heads and 3 KV heads at 2 and 3 ranks", () => {
    assert.deepEqual(splitHeads(9, 3, 2), [
      { queryHeads: { start: 0, end: 6 }, kvHeads: { start: 0, end: 2 }, kvHeadOf: [0, 0, 0, 1, 1, 1] },
      { queryHeads: { start: 6, end: 9 }, kvHeads: { start: 2, end: 3 }, kvHeadOf: [0, 0, 0] },
    ]);
    assert.deepEqual(
      splitHeads(9, 3, 3).map(({ kvHeads }) => kvHeads),
      [
        { start: 0, end: 1 },
        { start: 1, end: 2 },
        { start: 2, end: 3 },
      ],
    );
  });

  it("replicates KV heads when there are more ranks: Qwen2.5-1.5B's 12 heads and 2 KV heads at 4 ranks", () => {
    const plan = splitHeads(12, 2, 4);
    assert.deepEqual(
      plan.map(({ kvHeads }) => kvHeads.start),
      [0, 0, 1, 1],
    );
    assert.deepEqual(
      plan.map(({ queryHeads }) => rangeSize(queryHeads)),
      [3, 3, 3, 3],
    );
  });

  it("lets a rank hold two KV heads when its query heads straddle a group", () => {
    assert.deepEqual(splitHeads(9, 3, 4)[2], {
      queryHeads: { start: 5, end: 7 },
      kvHeads: { start: 1, end: 3 },
      kvHeadOf: [0, 1],
    });
  });

  it("refuses more ranks than query heads and KV heads that do not divide", () => {
    assert.throws(
      () => splitHeads(4, 2, 5),
      (error: unknown) => error instanceof PartitionError && error.code === "TOO_MANY_RANKS",
    );
    assert.throws(
      () => splitHeads(7, 2, 1),
      (error: unknown) => error instanceof PartitionError && error.code === "INVALID_HEADS",
    );
  });

  it("cuts GPT-2's vocabulary where vLLM does, and stores none of its 47 padding rows", () => {
    assert.deepEqual(splitVocabulary(50257, 2), [
      { start: 0, end: 25152 },
      { start: 25152, end: 50257 },
    ]);
  });

  it("property: every query head reads the KV head of its group, and every head is owned once", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 64 }),
        (kv, group, ranks) => {
          const heads = kv * group;
          fc.pre(ranks <= heads);
          let next = 0;
          for (const { queryHeads, kvHeads, kvHeadOf } of splitHeads(heads, kv, ranks)) {
            assert.equal(queryHeads.start, next);
            assert.ok(rangeSize(queryHeads) > 0);
            next = queryHeads.end;
            kvHeadOf.forEach((local, i) => {
              assert.equal(kvHeads.start + local, Math.floor((queryHeads.start + i) / group));
              assert.ok(local >= 0 && kvHeads.start + local < kvHeads.end);
            });
          }
          assert.equal(next, heads);
        },
      ),
    );
  });

  it("property: a vocabulary's ids are owned once, and every rank has some", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200_000 }), fc.integer({ min: 1, max: 64 }), (size, ranks) => {
        fc.pre(ranks <= size);
        let next = 0;
        for (const ids of splitVocabulary(size, ranks)) {
          assert.equal(ids.start, next);
          assert.ok(rangeSize(ids) >= 1);
          next = ids.end;
        }
        assert.equal(next, size);
      }),
    );
  });
});
