import assert from "node:assert/strict";
import fc from "fast-check";
import { type CollectiveRequest, drive, type Pass } from "../../src/collectives/collective.js";
import { COLLECTIVE_PAYLOADS, type CollectivePayload } from "../../src/collectives/payload.js";
import { createRegion } from "../../src/collectives/region.js";
import { singleRank } from "../../src/collectives/single.js";
import { driveInTurns, Turns } from "../../src/collectives/turns.js";
import { Arena } from "../../src/core/arena.js";
import { CollectiveError, OptionError } from "../../src/core/errors.js";
import { expectedBits, rankOrderSum } from "./oracle.js";
import { bitsOf, madeUpBits, makeOperand, type Step, scriptPass } from "./script.js";
import { engines, runThreads } from "./threads.js";

function scriptOf(worldSize: number, payload: CollectivePayload = "f32"): Step[] {
  const widths = Array.from({ length: worldSize }, (_, rank) => (rank * 5) % 7);
  return [
    { do: "allReduce", count: 0, seed: 1 },
    { do: "allReduce", count: 1, seed: 1 },
    { do: "allReduce", count: 5001, seed: 2 },
    { do: "allGather", rows: 3, widths, type: "f32", seed: 3 },
    { do: "barrier" },
    { do: "allGather", rows: 2, widths, type: "i32", seed: 4 },
    { do: "broadcast", count: 100, root: worldSize - 1, type: "i32", seed: 5 },
    // Its sums are exact in f32 only.
    ...(payload === "f32" ? [{ do: "storm", iterations: 50, most: 40 } as const] : []),
  ];
}

function passesOf(worldSize: number, script: readonly Step[]): Pass<Int32Array[]>[] {
  return Array.from({ length: worldSize }, (_, rank) => scriptPass(script, rank, worldSize));
}

const barrier: CollectiveRequest = { kind: "barrier" };

describe("ranks taking turns in one thread", () => {
  for (const worldSize of [1, 2, 3, 4, 8]) {
    it(`leave the same bits as ${worldSize} real threads`, async () => {
      for (const payload of COLLECTIVE_PAYLOADS) {
        const script = scriptOf(worldSize, payload);
        const inTurns = driveInTurns(passesOf(worldSize, script), { payload });
        const expected = script.map((step) => expectedBits(step, worldSize, payload));
        assert.deepEqual(inTurns, new Array(worldSize).fill(expected));
        for (const engine of engines) {
          const region = createRegion({ worldSize, payload, slotBytes: 4096, oneShotBytes: 1024 });
          const outcomes = await runThreads({ region, engine, scripts: new Array(worldSize).fill(script) });
          assert.deepEqual(
            outcomes.map(({ results }) => results),
            inTurns,
            `${engine}, ${payload}`,
          );
        }
      }
    });
  }

  it("leave the same bits in whatever order they take their turns", () => {
    const script = scriptOf(4);
    const expected = driveInTurns(passesOf(4, script));
    fc.assert(
      fc.property(fc.infiniteStream(fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4, maxLength: 4 })), (orders) => {
        const turns = new Turns(passesOf(4, script));
        for (const order of orders) if (turns.round(order) === undefined) break;
        assert.deepEqual(turns.results(), expected);
      }),
      { numRuns: 20 },
    );
  });

  it("sum any bits in rank order, NaN being one NaN", () => {
    const bits = fc.int32Array({ minLength: 1, maxLength: 40 });
    const inputs = bits.chain((first) => {
      const { length } = first;
      const same = fc.int32Array({ minLength: length, maxLength: length });
      return fc.array(same, { minLength: 1, maxLength: 5 }).map((others) => [first, ...others]);
    });
    fc.assert(
      fc.property(inputs, (ranks) => {
        const operands = ranks.map((each) => makeOperand("f32", 1, each.length));
        for (const [rank, operand] of operands.entries()) bitsOf(operand).set(ranks[rank] ?? []);
        driveInTurns(
          operands.map(function* (data): Pass {
            yield { kind: "allReduce", data, count: data.columns };
          }),
        );
        const expected = rankOrderSum(ranks);
        for (const operand of operands) assert.deepEqual(bitsOf(operand).slice(), expected);
      }),
      { numRuns: 50 },
    );
  });

  it("report each request, and end after the last", () => {
    const turns = new Turns(
      [0, 1].map(() =>
        (function* (): Pass<number> {
          yield barrier;
          return 7;
        })(),
      ),
    );
    assert.equal(turns.round()?.kind, "barrier");
    assert.throws(() => turns.results(), { code: "INTERNAL" });
    assert.equal(turns.round(), undefined);
    assert.deepEqual(turns.results(), [7, 7]);
    assert.equal(turns.round(), undefined);
  });

  it("must all ask for the same, or COLLECTIVE_MISMATCH names both requests and closes all passes", () => {
    const data = makeOperand("f32", 1, 8);
    const cases: readonly [CollectiveRequest | undefined, CollectiveRequest | undefined, RegExp][] = [
      [barrier, { kind: "allReduce", data, count: 8 }, /rank 0 asks for barrier and rank 1 for allReduce of 8 f32/],
      [{ kind: "allReduce", data, count: 7 }, { kind: "allReduce", data, count: 8 }, /7 f32 and rank 1 .* 8 f32/],
      [barrier, undefined, /rank 0 asks for barrier and rank 1 for nothing more/],
      [undefined, barrier, /rank 0 asks for nothing more and rank 1 for barrier/],
    ];
    for (const [left, right, message] of cases) {
      let closed = 0;
      const pass = function* (request: CollectiveRequest | undefined): Pass {
        try {
          yield barrier;
          if (request !== undefined) yield request;
        } finally {
          closed++;
        }
      };
      assert.throws(
        () => driveInTurns([pass(left), pass(right)]),
        (error) => {
          assert.ok(error instanceof CollectiveError);
          assert.equal(error.code, "COLLECTIVE_MISMATCH");
          assert.match(error.message, message);
          assert.equal(error.details["otherRank"], 1);
          return true;
        },
      );
      assert.equal(closed, 2);
    }
  });

  it("close the passes of the others when one throws, and say which rank threw", () => {
    const closed: number[] = [];
    const run = (failure: Error) =>
      driveInTurns(
        [0, 1, 2].map((rank) =>
          (function* (): Pass {
            try {
              yield barrier;
              if (rank === 1) throw failure;
              yield barrier;
            } finally {
              closed.push(rank);
            }
          })(),
        ),
      );
    const failure = new OptionError("SOME_CODE", "no good", { option: "x" });
    assert.throws(
      () => run(failure),
      (error) => {
        assert.ok(error instanceof OptionError);
        assert.deepEqual(
          [error.code, error.message, error.details],
          ["SOME_CODE", "no good", { option: "x", rank: 1 }],
        );
        assert.equal(error.stack, failure.stack);
        return true;
      },
    );
    assert.deepEqual(closed.sort(), [0, 1, 2]);
    assert.throws(() => run(new RangeError("off by one")), { message: "off by one", details: { rank: 1 } });
  });

  it("name both modules when the same is asked for at different places: an all-reduce left out is noticed at once", () => {
    const sizes = ["a.o_proj", "a.down_proj", "b.o_proj"];
    const pass = function* (sites: readonly string[]): Pass {
      for (const site of sites) yield { kind: "allReduce", site, data: makeOperand("f32", 1, 8), count: 8 };
    };
    const skipping = sizes.filter((site) => site !== "a.down_proj");
    assert.throws(
      () => driveInTurns([pass(sizes), pass(skipping)]),
      (error: unknown) => {
        assert.ok(error instanceof CollectiveError);
        assert.equal(error.code, "COLLECTIVE_MISMATCH");
        assert.match(error.message, /request 2: .*rank 0 asks for .* for a\.down_proj and rank 1 for .* for b\.o_proj/);
        const { sequence, site, otherSite } = error.details;
        assert.deepEqual({ sequence, site, otherSite }, { sequence: 2, site: "a.down_proj", otherSite: "b.o_proj" });
        return true;
      },
    );
  });

  it("tell an observer who ran, what was asked for and that it is done, in this order", () => {
    const heard: string[] = [];
    const pass = function* (): Pass {
      yield { kind: "barrier", site: "here" };
    };
    driveInTurns([pass(), pass()], {
      observer: {
        advanced: (rank) => heard.push(`rank ${rank}`),
        asked: (requests) => heard.push(`asked ${requests.map(({ site }) => site)}`),
        carriedOut: (requests) => heard.push(`done ${requests.length}`),
      },
    });
    assert.deepEqual(heard, ["rank 0", "rank 1", "asked here,here", "done 2", "rank 0", "rank 1"]);
  });

  it("check requests and move nothing where operands are virtual", () => {
    const tensor = {
      name: "virtual",
      dtype: "f32",
      shape: [1, 4],
      arena: Arena.virtual("none"),
      byteOffset: 0,
    } as const;
    const pass = function* (count: number): Pass {
      yield { kind: "allReduce", data: { tensor, handle: 0, rows: 1, columns: 4 }, count };
    };
    driveInTurns([pass(4), pass(4)], { moveElements: false });
    assert.throws(() => driveInTurns([pass(5), pass(5)], { moveElements: false }), /a count of at most 4/);
    assert.throws(() => driveInTurns([pass(4), pass(3)], { moveElements: false }), { code: "COLLECTIVE_MISMATCH" });
  });

  it("refuse an order of turns that leaves a rank out", () => {
    const pass = function* (): Pass {
      yield barrier;
    };
    assert.throws(() => new Turns([pass(), pass()]).round([0, 0]), {
      code: "INTERNAL",
      message: /received the order 0, 0/,
    });
    assert.throws(() => new Turns([pass(), pass()]).round([1]), { code: "INTERNAL" });
    assert.throws(() => new Turns([pass(), pass()]).round([1, 2]), { code: "INTERNAL" });
  });
});

describe("a single rank", () => {
  it("gathers its own columns and leaves everything else as it is", () => {
    const script = scriptOf(1);
    assert.deepEqual(
      drive(scriptPass(script, 0, 1), singleRank),
      script.map((step) => expectedBits(step, 1)),
    );
  });

  it("refuses requests that do not fit their operands, as every other collective does", () => {
    const data = makeOperand("f32", 1, 4);
    bitsOf(data).set(madeUpBits("f32", 0, 1, 4));
    assert.throws(() => singleRank.execute({ kind: "allReduce", data, count: 5 }), { code: "INTERNAL" });
    assert.throws(() => singleRank.execute({ kind: "broadcast", data, count: 4, root: 1 }), { code: "INTERNAL" });
  });
});
