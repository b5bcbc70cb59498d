import assert from "node:assert/strict";
import fc from "fast-check";
import type { Collective, CollectiveRequest } from "../../src/collectives/collective.js";
import { payloadOf } from "../../src/collectives/payload.js";
import { checkSameResults, resultChecksum, verifiedCollective } from "../../src/collectives/verified.js";
import { CollectiveError } from "../../src/core/errors.js";
import { makeOperand } from "./script.js";

/** Bits that are no pattern. */
const scramble = (i: number): number => Math.imul(i + 1, 0x9e3779b1);

function filled(rows: number, columns: number): ReturnType<typeof makeOperand> {
  const operand = makeOperand("i32", rows, columns);
  payloadOf(operand).bits.forEach((_, i, bits) => {
    bits[i] = scramble(i);
  });
  return operand;
}

/** A gather whose result leaves a column of every row of `out` alone. */
function gather(rows: number, width: number): CollectiveRequest & { readonly kind: "allGather" } {
  const [data, out] = [filled(rows, width), filled(rows, 2 * width + 1)];
  return { kind: "allGather", data, out, widths: [width, width], rows };
}

describe("the checksum of a collective's result", () => {
  it("changes with any change of one element, in whatever bits", () => {
    const change = fc.integer().filter((bits) => bits !== 0);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 40 }),
        fc.nat(),
        change,
        (rows, width, at, bits) => {
          const request = gather(rows, width);
          const before = resultChecksum(request);
          const element = at % (rows * 2 * width);
          const index = Math.floor(element / (2 * width)) * (2 * width + 1) + (element % (2 * width));
          const payload = payloadOf(request.out).bits;
          payload[index] = (payload[index] ?? 0) ^ bits;
          assert.notEqual(resultChecksum(request), before);
        },
      ),
    );
  });

  it("is that of the result alone, not of what lies beside it", () => {
    const request = gather(3, 4);
    const before = resultChecksum(request);
    const bits = payloadOf(request.out).bits;
    for (const row of [0, 1, 2]) bits[9 * row + 8] = 0;
    assert.equal(resultChecksum(request), before);
    const reduce: CollectiveRequest = { kind: "allReduce", data: filled(1, 8), count: 5 };
    const sum = resultChecksum(reduce);
    payloadOf(reduce.data).bits.fill(0, 5);
    assert.equal(resultChecksum(reduce), sum);
    assert.equal(resultChecksum({ kind: "barrier" }), 0);
  });

  it("tells zeros of different signs apart, and NaN of different bits", () => {
    const checksums = [0, 0x80000000, 0x7fc00000, 0x7fc00001].map((bits) => {
      const data = makeOperand("f32", 1, 1);
      payloadOf(data).bits[0] = bits;
      return resultChecksum({ kind: "allReduce", data, count: 1 });
    });
    assert.equal(new Set(checksums).size, 4);
  });
});

describe("ranks that verify a collective", () => {
  const reduces = (worldSize: number, odd: readonly number[]): CollectiveRequest[] =>
    Array.from({ length: worldSize }, (_, rank) => {
      const data = filled(1, 6);
      if (odd.includes(rank)) payloadOf(data).bits[2] = rank;
      return { kind: "allReduce", site: "layers.7.mlp.down_proj", data, count: 6 };
    });

  it("say nothing while all hold the same", () => {
    checkSameResults(reduces(4, []), 1);
    checkSameResults([], 1);
  });

  for (const [worldSize, odd, ranks] of [
    [3, [1], "1"],
    [5, [4, 0], "0,4"],
    [2, [1], "0,1"],
    [4, [0, 1, 2], "0,1,2,3"],
  ] as const) {
    it(`name ranks ${ranks} of ${worldSize} when ranks ${odd.join(", ")} hold something else each`, () => {
      assert.throws(
        () => checkSameResults(reduces(worldSize, odd), 9),
        (error) => {
          assert.ok(error instanceof CollectiveError, String(error));
          assert.equal(error.code, "COLLECTIVE_CORRUPTED");
          const { details } = error;
          assert.deepEqual(
            [details["ranks"], details["sequence"], details["site"]],
            [ranks, 9, "layers.7.mlp.down_proj"],
          );
          return true;
        },
      );
    });
  }

  it("exchange checksums through a collective of its own, after each request", () => {
    const executed: string[] = [];
    const named = (name: string): Collective => ({
      rank: 1,
      worldSize: 2,
      execute: (request) => {
        executed.push(`${name} ${request.kind}`);
        if (request.kind === "allGather") payloadOf(request.out).bits.fill(payloadOf(request.data).bits[0] ?? 0);
      },
      abort: () => executed.push(`${name} abort`),
    });
    const bind = (tensor: Parameters<Parameters<typeof verifiedCollective>[1]>[0]) => ({
      tensor,
      handle: 0,
      rows: 1,
      columns: tensor.shape[1] ?? 0,
    });
    const collective = verifiedCollective(named("faulty"), bind, named("sound"));
    collective.execute({ kind: "barrier" });
    collective.execute({ kind: "allReduce", data: filled(1, 3), count: 3 });
    collective.abort();
    assert.deepEqual(executed, [
      "faulty barrier",
      "sound allGather",
      "faulty allReduce",
      "sound allGather",
      "faulty abort",
    ]);
    assert.deepEqual([collective.rank, collective.worldSize], [1, 2]);
  });
});
