import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import {
  type CollectiveRegion,
  createRegion,
  GATE,
  RANK_LINE,
  rankLine,
  wordsOf,
} from "../../src/collectives/region.js";
import { abortRegion, createSharedMemoryCollective } from "../../src/collectives/shared-memory.js";
import { CollectiveError, type ShardloomError } from "../../src/core/errors.js";
import { makeOperand, type Step } from "./script.js";
import { engines, LONG_TIMEOUT_MS, type Outcome, runThreads } from "./threads.js";

const reduce: Step = { do: "allReduce", count: 576, seed: 1 };
const barrier: Step = { do: "barrier" };

function failureOf({ rank, error }: Outcome): ShardloomError {
  assert.ok(error instanceof CollectiveError, `rank ${rank} got ${error}`);
  return error;
}

/** Every outcome is an error of this code, and so is that of one more call. */
function assertAllFailed(outcomes: readonly Outcome[], code: string): void {
  for (const outcome of outcomes) {
    assert.equal(failureOf(outcome).code, code);
    assert.ok(outcome.again instanceof CollectiveError, `rank ${outcome.rank}: a call after the error did not throw`);
    assert.equal(outcome.again.code, code);
    assert.match(outcome.again.message, /in an earlier call/);
  }
}

async function untilWaiting(region: CollectiveRegion, ranks: readonly number[], parked: boolean): Promise<void> {
  const words = wordsOf(region);
  const arrived = (rank: number) => Atomics.load(words, rankLine(rank) + RANK_LINE.arrived) !== 0;
  while (!ranks.every(arrived) || (parked && Atomics.load(words, GATE.parked) === 0)) await setImmediate();
}

for (const engine of engines) {
  describe(`failures of collectives, ${engine}`, () => {
    it("a rank that never arrives ends in COLLECTIVE_TIMEOUT on all others, naming it", async () => {
      const region = createRegion({ worldSize: 4 });
      const scripts = [[reduce], [reduce], [], [reduce]];
      const outcomes = await runThreads({ region, engine, scripts, timeoutMs: 200, meetFirst: true });
      assert.equal(outcomes.splice(2, 1)[0]?.error, undefined);
      assertAllFailed(outcomes, "COLLECTIVE_TIMEOUT");
      const first = outcomes.map(failureOf).find((error) => !error.message.includes("given up"));
      assert.match(first?.message ?? "", /within 200 ms but rank .*2 did not arrive/);
      for (const outcome of outcomes) {
        const { details } = failureOf(outcome);
        assert.equal(details.rank, outcome.rank);
        assert.equal(details["request"], "allReduce");
        assert.equal(details["sequence"], 1);
        assert.ok(String(details["missingRanks"]).split(",").includes("2"), `missing: ${details["missingRanks"]}`);
      }
    });

    it("a rank that stops in the middle is missed at the request that it did not make", async () => {
      const region = createRegion({ worldSize: 2 });
      const scripts = [
        [barrier, reduce, barrier, reduce],
        [barrier, reduce, barrier],
      ];
      const [left, stopped] = await runThreads({ region, engine, scripts, timeoutMs: 200, meetFirst: true });
      assert.ok(left !== undefined);
      const { code, details } = failureOf(left);
      assert.deepEqual([code, details["sequence"], details["missingRanks"]], ["COLLECTIVE_TIMEOUT", 4, "1"]);
      assert.equal(stopped?.error, undefined);
    });

    it("a rank behind the wrap of the phase count has not arrived", () => {
      for (const last of [0x7fffffff, -1]) {
        const region = createRegion({ worldSize: 2 });
        for (const rank of [0, 1]) wordsOf(region)[rankLine(rank) + RANK_LINE.arrived] = last;
        const collective = createSharedMemoryCollective(region, 0, { timeoutMs: 1, native: engine === "native" });
        assert.throws(() => collective.execute({ kind: "barrier" }), { code: "COLLECTIVE_TIMEOUT" });
      }
    });

    for (const parked of [true, false]) {
      it(`abort from outside wakes ranks that ${parked ? "are parked" : "spin"}`, async () => {
        const region = createRegion({ worldSize: 3 });
        const waiting = { spinMicros: parked ? 0 : 1_000_000_000, yieldMicros: 0 };
        const options = { region, engine, scripts: [[reduce], [barrier], undefined], waiting };
        const outcomes = await runThreads({ ...options, timeoutMs: LONG_TIMEOUT_MS }, async () => {
          await untilWaiting(region, [0, 1], parked);
          abortRegion(region);
        });
        assertAllFailed(outcomes, "COLLECTIVE_ABORTED");
        for (const outcome of outcomes) assert.match(failureOf(outcome).message, /aborted by the coordinator/);
      });
    }

    it("abort by a rank ends the wait of all others, which name it", async () => {
      const region = createRegion({ worldSize: 3 });
      const options = { region, engine, scripts: [[reduce], [reduce], [reduce]], abortingRank: 1 };
      const outcomes = await runThreads({ ...options, timeoutMs: LONG_TIMEOUT_MS });
      assert.deepEqual(
        outcomes.map(({ error }) => error?.code),
        ["COLLECTIVE_ABORTED", "COLLECTIVE_ABORTED", "COLLECTIVE_ABORTED"],
      );
      for (const { error } of outcomes) assert.match(error?.message ?? "", /rank 1/);
    });

    it("the first failure is the one that later calls report", async () => {
      const region = createRegion({ worldSize: 2 });
      const collective = createSharedMemoryCollective(region, 0, { timeoutMs: 20, native: engine === "native" });
      assert.throws(() => collective.execute({ kind: "barrier" }), { code: "COLLECTIVE_TIMEOUT" });
      collective.abort();
      assert.throws(() => collective.execute({ kind: "barrier" }), { code: "COLLECTIVE_TIMEOUT" });
    });

    describe("ranks that ask for different things get COLLECTIVE_MISMATCH, with both requests", () => {
      const gather = (more: Partial<Extract<Step, { do: "allGather" }>>): Step => ({
        do: "allGather",
        rows: 2,
        widths: [2, 3, 4],
        type: "f32",
        seed: 1,
        ...more,
      });
      const broadcast = (more: Partial<Extract<Step, { do: "broadcast" }>>): Step => ({
        do: "broadcast",
        count: 5,
        root: 0,
        type: "f32",
        seed: 1,
        ...more,
      });
      const cases: readonly [string, Step, Step, RegExp][] = [
        ["kind", reduce, barrier, /allReduce of 576 f32 .*barrier|barrier .*allReduce of 576 f32/],
        ["count", reduce, { ...reduce, count: 577 }, /allReduce of 57[67] f32 .*allReduce of 57[67] f32/],
        ["rows", gather({}), gather({ rows: 3 }), /allGather of [23] rows.*allGather of [23] rows/],
        ["widths", gather({}), gather({ widths: [3, 2, 4] }), /allGather .*widths #.*allGather .*widths #/],
        ["widths of others only", gather({}), gather({ widths: [1, 4, 4] }), /allGather .*allGather/],
        ["dtype of a gather", gather({}), gather({ type: "i32" }), /f32.*i32|i32.*f32/],
        ["root", broadcast({}), broadcast({ root: 2 }), /from rank [02].*from rank [02]/],
        ["dtype of a broadcast", broadcast({}), broadcast({ type: "i32" }), /5 (f32.*i32|i32.*f32)/],
        [
          "size of a payload of many rounds",
          { ...reduce, count: 9000 },
          { ...reduce, count: 9001 },
          /900[01].*900[01]/,
        ],
      ];
      for (const [what, usual, deviant, message] of cases) {
        it(what, async () => {
          const region = createRegion({ worldSize: 3, slotBytes: 4096 });
          const scripts = [
            [barrier, usual],
            [barrier, usual],
            [barrier, deviant],
          ];
          const outcomes = await runThreads({ region, engine, scripts, timeoutMs: LONG_TIMEOUT_MS });
          assertAllFailed(outcomes, "COLLECTIVE_MISMATCH");
          for (const { rank, error } of outcomes) {
            assert.match(error?.message ?? "", message);
            assert.equal(error?.details["sequence"], 2);
            assert.equal(error?.details["otherRank"], rank === 2 ? 0 : 2);
            assert.notEqual(error?.details.expected, error?.details.received);
          }
        });
      }
    });

    it("a mismatch names the modules that asked, on both sides, and a rank that has no name to give holds nobody up", async () => {
      const of = (count: number, site?: string): Step => {
        return { do: "allReduce", count, seed: 1, ...(site === undefined ? {} : { site }) };
      };
      const region = createRegion({ worldSize: 3 });
      const scripts = [[of(576, "layers.0.o_proj")], [of(576, "layers.0.o_proj")], [of(64, "layers.0.down_proj")]];
      const outcomes = await runThreads({ region, engine, scripts });
      assertAllFailed(outcomes, "COLLECTIVE_MISMATCH");
      for (const outcome of outcomes) {
        const { message, details } = failureOf(outcome);
        const [site, otherSite] = ["layers.0.o_proj", "layers.0.down_proj"];
        assert.match(message, /576 f32 for layers\.0\.o_proj/);
        assert.match(message, /64 f32 for layers\.0\.down_proj/);
        assert.equal(details["site"], outcome.rank === 2 ? otherSite : site);
        assert.equal(details["otherSite"], outcome.rank === 2 ? site : otherSite);
      }
      const nameless = await runThreads({
        region: createRegion({ worldSize: 2 }),
        engine,
        scripts: [[of(1)], [of(2, "embed_tokens")]],
      });
      assert.match(failureOf(nameless[0] ?? assert.fail()).message, /2 f32 for embed_tokens$/);
      assert.match(failureOf(nameless[1] ?? assert.fail()).message, /asks for allReduce of 1 f32$/);
    });

    it("two collectives of equal kind and size that one rank swaps, or one that it skips, name both modules on every rank", async () => {
      const of = (site: string): Step => ({ do: "allReduce", count: 576, seed: 1, site });
      const [first, o, down] = [of("embed_tokens"), of("layers.0.o_proj"), of("layers.0.down_proj")];
      for (const deviant of [
        [first, down, o, down],
        [first, down],
      ]) {
        const region = createRegion({ worldSize: 3 });
        const usual = [first, o, down, o];
        const outcomes = await runThreads({ region, engine, scripts: [usual, deviant, usual] });
        assertAllFailed(outcomes, "COLLECTIVE_MISMATCH");
        for (const outcome of outcomes) {
          const { message, details } = failureOf(outcome);
          const sites = ["layers.0.o_proj", "layers.0.down_proj"];
          if (outcome.rank === 1) sites.reverse();
          assert.match(
            message,
            new RegExp(`expected allReduce of 576 f32 for ${sites[0]} .* 576 f32 for ${sites[1]}$`),
          );
          assert.deepEqual([details["sequence"], details["site"], details["otherSite"]], [2, ...sites]);
        }
      }
    });

    it("requests that do not fit their operands are refused before any other rank is met", () => {
      const collective = createSharedMemoryCollective(createRegion({ worldSize: 2 }), 1, {
        timeoutMs: LONG_TIMEOUT_MS,
        native: engine === "native",
      });
      const f32 = makeOperand("f32", 2, 4);
      const i32 = makeOperand("i32", 2, 4);
      const gather = { kind: "allGather", data: f32, out: f32, widths: [2, 2], rows: 2 } as const;
      const refused = { code: "INTERNAL", message: /expected .* but received/ };
      assert.throws(() => collective.execute({ kind: "allReduce", data: f32, count: 9 }), refused);
      assert.throws(() => collective.execute({ kind: "allReduce", data: f32, count: -1 }), refused);
      assert.throws(() => collective.execute({ kind: "allReduce", data: i32, count: 8 }), refused);
      assert.throws(() => collective.execute({ kind: "broadcast", data: i32, count: 8, root: 2 }), refused);
      assert.throws(() => collective.execute({ kind: "broadcast", data: i32, count: 8.5, root: 0 }), refused);
      assert.throws(() => collective.execute({ ...gather, widths: [2] }), refused);
      assert.throws(() => collective.execute({ ...gather, widths: [2, 3] }), refused);
      assert.throws(() => collective.execute({ ...gather, widths: [-1, 3] }), refused);
      assert.throws(() => collective.execute({ ...gather, rows: 3 }), refused);
      assert.throws(() => collective.execute({ ...gather, out: i32 }), refused);
      assert.throws(() => collective.execute({ ...gather, data: makeOperand("f32", 2, 1) }), refused);
      assert.throws(() => collective.execute({ ...gather, data: makeOperand("f32", 1, 2) }), refused);
    });
  });
}
