import assert from "node:assert/strict";
import fc from "fast-check";
import { alternate } from "../../bench/frame/alternate.js";
import { median, pairRatios, summarize } from "../../bench/frame/statistics.js";

const samples = fc.array(fc.double({ min: 1e-3, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 20 });

describe("bench statistics", () => {
  it("a median has as many samples below it as above, in whatever order they come", () => {
    fc.assert(
      fc.property(samples, (values) => {
        const middle = median(values);
        const below = values.filter((value) => value < middle).length;
        const above = values.filter((value) => value > middle).length;
        assert.ok(below <= values.length / 2 && above <= values.length / 2);
        assert.equal(median(values.toReversed()), middle);
      }),
    );
    assert.equal(median([3, 1, 2]), 2);
    assert.equal(median([4, 1, 2, 3]), 2.5);
  });

  it("sums up no samples as not a number rather than as infinities", () => {
    assert.deepEqual(summarize([]), { median: Number.NaN, min: Number.NaN, max: Number.NaN });
    assert.deepEqual(summarize([2, 3, 1]), { median: 2, min: 1, max: 3 });
  });

  it("a ratio above 1 says that ours was faster, of rates as of times, within one round", () => {
    assert.deepEqual(pairRatios([20, 30], [10, 60], "higher"), [2, 0.5]);
    assert.deepEqual(pairRatios([20, 30], [10, 60], "lower"), [0.5, 2]);
    assert.deepEqual(pairRatios([20, 30, 40], [10], "higher"), [2], "rounds that only one has are left out");
  });

  it("contestants take turns, each following each, and the first round does not count", async () => {
    const order: string[] = [];
    const sampled = await alternate(["a", "b"], 3, async (name) => order.push(name));
    assert.equal(order.join(""), "abbaabba");
    assert.deepEqual(sampled, [
      [4, 5, 8],
      [3, 6, 7],
    ]);
  });

  it("a sample that fails ends the bench", async () => {
    await assert.rejects(
      alternate(["a"], 1, () => Promise.reject(new Error("no model"))),
      /no model/,
    );
  });
});
