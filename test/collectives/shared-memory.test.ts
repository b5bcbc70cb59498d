import assert from "node:assert/strict";
import fc from "fast-check";
import { COLLECTIVE_PAYLOADS } from "../../src/collectives/payload.js";
import { createRegion, RANK_LINE, type RegionOptions, rankLine, wordsOf } from "../../src/collectives/region.js";
import { waitingPolicy } from "../../src/collectives/shared-memory.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { expectedBits } from "./oracle.js";
import type { Step } from "./script.js";
import { type EngineName, engines, runThreads, type ThreadOptions } from "./threads.js";

const worlds = [1, 2, 3, 4, 8];

/** Slots this small send even small payloads in many rounds, and past the end of one half into the next. */
const TINY_SLOT_BYTES = 128;

/** Every rank runs the script; every rank must hold the expected bits after every step. */
async function checkScript(
  engine: EngineName,
  options: RegionOptions,
  script: readonly Step[],
  more: Partial<ThreadOptions> = {},
): Promise<void> {
  const { worldSize } = options;
  const scripts = new Array<readonly Step[]>(worldSize).fill(script);
  const outcomes = await runThreads({ region: createRegion(options), engine, scripts, ...more });
  assert.equal(outcomes.length, worldSize);
  const expected = script.map((step) => expectedBits(step, worldSize, options.payload));
  for (const { rank, error, results } of outcomes) {
    if (error !== undefined) throw error;
    script.forEach((step, i) => {
      assertSameBits(results[i], expected[i], `${JSON.stringify(step)} on rank ${rank} of ${worldSize}`);
    });
  }
}

/** deepEqual on a million elements takes seconds, and its message is no use. */
function assertSameBits(actual: Int32Array | undefined, expected: Int32Array | undefined, what: string): void {
  assert.equal(actual?.length, expected?.length, what);
  const wrong = actual?.findIndex((bits, i) => bits !== expected?.[i]) ?? -1;
  if (wrong >= 0) assert.fail(`${what}: element ${wrong} is ${actual?.[wrong]}, expected ${expected?.[wrong]}`);
}

const reduce = (count: number): Step => ({ do: "allReduce", count, seed: count });

for (const engine of engines) {
  describe(`shared-memory collectives, ${engine}`, () => {
    for (const worldSize of worlds) {
      it(`sum in rank order, bit for bit on all of ${worldSize} ranks, around the size of a slot`, async () => {
        const counts = [0, 1, 2, 3, 15, 16, 17, 576, 1023, 1024, 1025, 2047, 2048, 2049, 5001];
        await checkScript(engine, { worldSize, slotBytes: 4096 }, counts.map(reduce));
      });

      it(`round what travels as bf16, and sum it in f32, one-shot and scattered, on ${worldSize} ranks`, async () => {
        const script = [0, 1, 15, 31, 32, 33, 64, 257, 1025].map(reduce);
        const payload = "bf16";
        await checkScript(engine, { worldSize, payload, slotBytes: TINY_SLOT_BYTES, oneShotBytes: 0 }, script);
        await checkScript(engine, { worldSize, payload, slotBytes: 4096, oneShotBytes: 4096 }, script);
      });

      it(`give the same bits one-shot and scattered, on ${worldSize} ranks`, async () => {
        const script = [1, 2, 3, 17, 31, 32, 33, 64, 100, 257].map(reduce);
        await checkScript(engine, { worldSize, slotBytes: TINY_SLOT_BYTES, oneShotBytes: 0 }, script);
        await checkScript(engine, { worldSize, slotBytes: TINY_SLOT_BYTES, oneShotBytes: TINY_SLOT_BYTES }, script);
      });

      it(`gather rows of uneven and empty widths and broadcast from every rank, on ${worldSize} ranks`, async () => {
        const ranks = Array.from({ length: worldSize }, (_, rank) => rank);
        const gather = (rows: number, widths: number[], type: "f32" | "i32"): Step => ({
          do: "allGather",
          rows,
          widths,
          type,
          seed: rows,
        });
        const script: Step[] = [
          gather(
            1,
            ranks.map(() => 1),
            "f32",
          ),
          gather(
            3,
            ranks.map((rank) => rank),
            "i32",
          ),
          gather(
            5,
            ranks.map((rank) => (worldSize - rank) * 13),
            "f32",
          ),
          gather(
            2,
            ranks.map((rank) => (rank === 0 ? 100 : 0)),
            "i32",
          ),
          gather(
            4,
            ranks.map(() => 0),
            "f32",
          ),
          gather(
            0,
            ranks.map(() => 4),
            "f32",
          ),
          ...ranks.map((root): Step => ({ do: "broadcast", count: 33 + root, root, type: "f32", seed: root })),
          { do: "broadcast", count: 0, root: worldSize - 1, type: "i32", seed: 1 },
          { do: "broadcast", count: 1, root: 0, type: "i32", seed: 1 },
          { do: "barrier" },
        ];
        await checkScript(engine, { worldSize }, script);
        await checkScript(engine, { worldSize, slotBytes: TINY_SLOT_BYTES }, script);
      });
    }

    for (const worldSize of [2, 3]) {
      it(`sum a million elements on ${worldSize} ranks with slots of the usual size`, async () => {
        await checkScript(engine, { worldSize }, [reduce(1_000_003)]);
      });
    }

    it("never read a slot that its owner has filled again, over thousands of back-to-back sums", async () => {
      const storm: Step = { do: "storm", iterations: engine === "native" ? 6000 : 1500, most: 96 };
      // Sums of 1 to 96 elements over slots of 32 take one to three rounds, one-shot up to 16 elements.
      await checkScript(engine, { worldSize: 2, slotBytes: TINY_SLOT_BYTES, oneShotBytes: 64 }, [storm]);
      await checkScript(engine, { worldSize: 3, slotBytes: TINY_SLOT_BYTES, oneShotBytes: 64 }, [storm]);
    });

    it("go on when the count of phases wraps around", async () => {
      const region = createRegion({ worldSize: 2, slotBytes: TINY_SLOT_BYTES });
      for (const start of [-40, 0x7fffffff - 40]) {
        for (const rank of [0, 1]) wordsOf(region)[rankLine(rank) + RANK_LINE.arrived] = start;
        const script: Step[] = [{ do: "storm", iterations: 100, most: 8 }];
        const outcomes = await runThreads({ region, engine, scripts: [script, script] });
        for (const { error, results } of outcomes) assert.deepEqual([error, results], [undefined, [Int32Array.of(0)]]);
      }
    });

    it("finish with more ranks than cores, whether they spin, yield or park", async () => {
      const storm: Step = { do: "storm", iterations: 300, most: 64 };
      await checkScript(engine, { worldSize: 8 }, [storm], { waiting: waitingPolicy(8, 2) });
      await checkScript(engine, { worldSize: 8 }, [storm], { waiting: { spinMicros: 0, yieldMicros: 100 } });
      const fewer: Step = { do: "storm", iterations: 50, most: 64 };
      await checkScript(engine, { worldSize: 8 }, [fewer], { waiting: waitingPolicy(8, 8) });
    });

    if (engine === "native") {
      it("sum with every instruction set that the machine has, whatever travels", async () => {
        const status = nativeAddon();
        for (const isa of status.loaded ? status.addon.supportedIsas : []) {
          const script = [{ do: "selectIsa", isa } as const, ...[1, 7, 31, 33, 100, 1025].map(reduce)];
          for (const payload of COLLECTIVE_PAYLOADS) {
            await checkScript(engine, { worldSize: 3, payload, slotBytes: 4096, oneShotBytes: 256 }, script);
          }
        }
      });
    }

    it("sum NaN, infinities, signed zeros and denormals as IEEE 754 says, with one NaN for all", async () => {
      await fc.assert(
        fc.asyncProperty(fc.integer({ min: 2, max: 4 }).chain(scriptOfSpecials), async ({ worldSize, script }) => {
          await checkScript(engine, { worldSize }, script);
          await checkScript(engine, { worldSize, slotBytes: TINY_SLOT_BYTES, oneShotBytes: 64 }, script);
          await checkScript(engine, { worldSize, payload: "bf16" }, script);
        }),
        { numRuns: 5 },
      );
    });
  });
}

const specialBits = fc.oneof(
  fc.constantFrom(
    ...[0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0xff812345],
    ...[0x00000001, 0x80000001, 0x007fffff, 0x807fffff, 0x7f7fffff, 0xff7fffff, 0x3f800000, 0xbf800000],
  ),
  fc.integer(),
);

/** Forty sums of any sizes and any bits: starting threads for each would take too long. */
function scriptOfSpecials(worldSize: number): fc.Arbitrary<{ worldSize: number; script: Step[] }> {
  const sum = fc.integer({ min: 1, max: 70 }).chain((count) => {
    const bits = fc.array(specialBits, { minLength: count, maxLength: count }).map((each) => Int32Array.from(each));
    return fc
      .array(bits, { minLength: worldSize, maxLength: worldSize })
      .map((ranks): Step => ({ do: "allReduce", count, seed: 0, bits: ranks }));
  });
  return fc.array(sum, { minLength: 40, maxLength: 40 }).map((script) => ({ worldSize, script }));
}
