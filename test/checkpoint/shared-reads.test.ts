/**
 * Reads that ranks share: each item is made once however many threads want it, everybody finds its bytes and no others,
 * memory is used again, and nobody waits for ever for a rank that fails or dies.
 */
import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import type { SharedItem } from "../../src/checkpoint/shared-reads.js";
import { sharedReadsInTurns } from "../../src/checkpoint/shared-reads.js";
import {
  createSharedReads,
  type SharedReadsHandle,
  SharedReadsMemory,
} from "../../src/checkpoint/shared-reads-memory.js";
import type { ReadsReport, ReadsTask } from "./shared-reads-worker.js";

const WORKER = new URL("./shared-reads-worker.js", import.meta.url);

function handle(): SharedReadsHandle {
  const made = createSharedReads();
  assert.ok(made !== null);
  return made;
}

/** Runs a task a rank, in threads; null for one that ended without a word. */
async function runRanks(tasks: readonly Omit<ReadsTask, "rank">[]): Promise<(ReadsReport | null)[]> {
  return Promise.all(
    tasks.map((task, rank) => {
      const worker = new Worker(WORKER, { workerData: { ...task, rank } satisfies ReadsTask });
      return new Promise<ReadsReport | null>((resolve, reject) => {
        let report: ReadsReport | null = null;
        worker.on("message", (message: ReadsReport) => {
          report = message;
        });
        worker.on("error", reject);
        worker.on("exit", () => resolve(report));
      });
    }),
  );
}

const range = (count: number, first = 0): number[] => Array.from({ length: count }, (_, i) => first + i);

function itemOf(key: string, value: number, sizeBytes = 1000): SharedItem {
  return { key, sizeBytes, fill: (bytes) => bytes.fill(value) };
}

describe("shared reads", () => {
  it("make every item once, whatever the order in which threads ask, and everybody finds its own bytes", async function () {
    this.timeout(60_000);
    const items = range(400);
    const lists = (rank: number): number[][] => {
      const turned = [...items.slice(rank * 37), ...items.slice(0, rank * 37)];
      return range(20).map((i) => turned.slice(i * 20, (i + 1) * 20));
    };
    const shared = handle();
    const reports = await runRanks(range(4).map((rank) => ({ handle: shared, acquisitions: lists(rank), takers: 4 })));
    assert.deepEqual(
      reports.flatMap((report) => report?.made ?? []).sort((a, b) => a - b),
      items,
    );
    for (const report of reports) assert.deepEqual([report?.wrong, report?.failed], [[], []]);
  });

  it("an item that one rank cannot make, another one makes; the error stays with the rank that had it", async function () {
    this.timeout(60_000);
    const shared = handle();
    const acquisitions = range(50).map((item) => [item]);
    const reports = await runRanks([
      { handle: shared, acquisitions, takers: 3, failing: range(50) },
      { handle: shared, acquisitions, takers: 3 },
      { handle: shared, acquisitions, takers: 3 },
    ]);
    const made = reports.flatMap((report) => report?.made ?? []);
    assert.deepEqual(
      made.toSorted((a, b) => a - b),
      range(50),
    );
    assert.deepEqual(reports[0]?.made, []);
    for (const report of reports.slice(1)) assert.deepEqual([report?.wrong, report?.failed], [[], []]);
  });

  it("a rank that dies over an item leaves nobody waiting: after a while the others make it for themselves", async function () {
    this.timeout(60_000);
    const shared = handle();
    const dying = await runRanks([{ handle: shared, acquisitions: [[1]], takers: 3, dyingAt: 1 }]);
    assert.deepEqual(dying, [null]);
    const others = { handle: shared, acquisitions: [[0, 1, 2]], takers: 3, waitMs: 200 };
    const reports = await runRanks([others, others]);
    for (const report of reports) {
      assert.deepEqual([report?.wrong, report?.failed, report?.made.includes(1)], [[], [], true]);
    }
  });

  it("use memory again when all takers have released an item, and not before", () => {
    const shared = handle();
    const [a, b] = [new SharedReadsMemory(shared), new SharedReadsMemory(shared)];
    const [ofA] = a.acquire([itemOf("x", 7)], 2);
    ofA?.release();
    const [ofB] = b.acquire([itemOf("x", 8)], 2);
    assert.deepEqual(new Set(ofB?.bytes), new Set([7]));
    const size = shared.data.byteLength;
    // Held by B: another item lies elsewhere.
    const [other] = a.acquire([itemOf("y", 9)], 1);
    assert.deepEqual(new Set(ofB?.bytes), new Set([7]));
    ofB?.release();
    other?.release();
    for (let i = 0; i < 500; i++) {
      const pieces = a.acquire([itemOf(`z${i}`, 1, 100_000), itemOf(`y${i}`, 2, 50_000)], 1);
      for (const piece of pieces) piece.release();
    }
    assert.equal(shared.data.byteLength, size);
  });

  it("a property: pieces that are held at the same time never overlap, however often items are dropped and come again", () => {
    const step = fc.record({ item: fc.nat(12), size: fc.nat(3), release: fc.nat(40) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const reads = new SharedReadsMemory(handle());
        const held: { readonly value: number; readonly bytes: Uint8Array; release(): void }[] = [];
        for (const { item, size, release } of steps) {
          const value = 1 + item * 4 + size;
          const [piece] = reads.acquire([itemOf(`${item}`, value, 1 + size * 97)], 1 + (item % 2));
          assert.ok(piece !== undefined);
          held.push({ ...piece, value });
          for (const each of held) assert.ok(each.bytes.every((byte) => byte === each.value));
          if (release < held.length) held.splice(release, 1)[0]?.release();
        }
      }),
      { numRuns: 60 },
    );
  });

  it("without room for an item a rank makes it for itself", () => {
    const shared: SharedReadsHandle = { ...handle(), data: new SharedArrayBuffer(0, { maxByteLength: 65_536 }) };
    const reads = new SharedReadsMemory(shared);
    const pieces = reads.acquire(
      range(5).map((i) => itemOf(`${i}`, i, 30_000)),
      2,
    );
    for (const [i, { bytes }] of pieces.entries()) assert.deepEqual([bytes.length, ...new Set(bytes)], [30_000, i]);
    for (const piece of pieces) piece.release();
  });

  it("closed, they hold no memory and share nothing: a rank makes what it still wants for itself", () => {
    const shared = handle();
    const [a, b] = [new SharedReadsMemory(shared), new SharedReadsMemory(shared)];
    const [held] = a.acquire([itemOf("x", 7)], 2);
    a.close();
    held?.release();
    const [own] = a.acquire([itemOf("x", 8)], 2);
    const [ofB] = b.acquire([itemOf("x", 9)], 2);
    assert.deepEqual([own?.bytes[0], ofB?.bytes[0]], [8, 7]);
  });

  it("in turns, a later rank finds what an earlier one made, until all have taken it", () => {
    const reads = sharedReadsInTurns();
    const take = (value: number): number | undefined => {
      const [piece] = reads.acquire([itemOf("x", value)], 2);
      const [first] = piece?.bytes ?? [];
      piece?.release();
      return first;
    };
    assert.deepEqual([take(1), take(2), take(3)], [1, 1, 3]);
  });
});
