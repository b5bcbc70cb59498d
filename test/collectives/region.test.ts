import assert from "node:assert/strict";
import {
  checkRegion,
  createRegion,
  GATE,
  HEADER,
  LINE_BYTES,
  LINE_WORDS,
  RANK_LINE,
  REQUEST_WORDS,
  rankLine,
  requestAt,
  slotOf,
  wordsOf,
} from "../../src/collectives/region.js";
import { createSharedMemoryCollective, waitingPolicy } from "../../src/collectives/shared-memory.js";
import { nativeAddon } from "../../src/core/native-addon.js";

describe("region of collectives", () => {
  it("gives every flag a line of its own and keeps slots apart, whatever the world size", () => {
    for (const worldSize of [1, 2, 3, 8, 64]) {
      const region = createRegion({ worldSize, slotBytes: 256 });
      const taken: [number, number][] = [
        [0, LINE_BYTES],
        [GATE.gate * 4, GATE.gate * 4 + LINE_BYTES],
      ];
      for (let rank = 0; rank < worldSize; rank++) {
        taken.push([rankLine(rank) * 4, rankLine(rank) * 4 + LINE_BYTES]);
        for (const half of [0, 1] as const) {
          const slot = slotOf(region, rank, half);
          const begin = slot.byteOffset - region.memory.base;
          assert.equal(slot.byteLength, 256);
          assert.equal(begin % LINE_BYTES, 0);
          taken.push([begin, begin + slot.byteLength]);
        }
      }
      taken.sort(([a], [b]) => a - b);
      taken.forEach(([begin], i) => {
        assert.ok(begin >= (taken[i - 1]?.[1] ?? 0), `world size ${worldSize}: areas overlap at ${begin}`);
      });
      assert.ok((taken.at(-1)?.[1] ?? 0) <= region.memory.capacity);
    }
  });

  it("keeps what other ranks read in the first 64 bytes of a line and what only its owner reads out of them", () => {
    assert.ok(requestAt(0, 1) + REQUEST_WORDS - rankLine(0) <= 16);
    assert.equal(requestAt(3, 5) - requestAt(3, 4), REQUEST_WORDS);
    const { timeoutMs, spinMicros, yieldMicros, spinBudget } = RANK_LINE;
    for (const own of [timeoutMs, spinMicros, yieldMicros, spinBudget]) {
      assert.ok(own >= 16 && own < LINE_WORDS);
    }
  });

  it("starts on a cache line where the addon can see addresses", function () {
    const status = nativeAddon();
    if (!status.loaded) this.skip();
    for (const slotBytes of [128, 1024 * 1024]) {
      const { buffer, base } = createRegion({ worldSize: 2, slotBytes }).memory;
      assert.equal(status.addon.addressModulo(new Uint8Array(buffer, base), 64), 0);
    }
  });

  it("is made for a sound number of ranks and whole lines only", () => {
    for (const [worldSize, slotBytes] of [
      [0, 256],
      [65, 256],
      [1.5, 256],
      [2, 0],
      [2, 100],
      [2, 2 ** 40],
    ] as const) {
      assert.throws(() => createRegion({ worldSize, slotBytes }), { code: "INTERNAL", message: /expected 1 to 64/ });
    }
  });

  it("is not attached to when it is another one than it claims, or to a rank that it has not", () => {
    const region = createRegion({ worldSize: 2, slotBytes: 256 });
    checkRegion(region);
    const options = { timeoutMs: 10 };
    for (const claim of [{ worldSize: 3 }, { slotBytes: 512 }]) {
      assert.throws(() => createSharedMemoryCollective({ ...region, ...claim }, 0, options), { code: "INTERNAL" });
    }
    for (const rank of [-1, 2, 0.5]) {
      assert.throws(() => createSharedMemoryCollective(region, rank, options), { message: /expected a rank below 2/ });
    }
    for (const timeoutMs of [0, 0.5, 2 ** 31, Number.POSITIVE_INFINITY]) {
      assert.throws(() => createSharedMemoryCollective(region, 0, { timeoutMs }), { message: /expected a time-out/ });
    }
    wordsOf(region)[HEADER.version] = 1;
    assert.throws(() => createSharedMemoryCollective(region, 0, options), { message: /layout 1/ });
  });

  it("is refused by the addon when its bytes are not those of a region, or have no such rank", function () {
    const status = nativeAddon();
    if (!status.loaded) this.skip();
    const { addon } = status;
    const region = createRegion({ worldSize: 2, slotBytes: 256 });
    const { buffer, base, capacity } = region.memory;
    const whole = addon.bind(new Uint8Array(buffer, base, capacity), "u8", 1, capacity);
    const cut = addon.bind(new Uint8Array(buffer, base, capacity - 1), "u8", 1, capacity - 1);
    assert.throws(() => addon.barrier(whole, 2, 0), RangeError);
    assert.throws(() => addon.barrier(cut, 0, 0), RangeError);
    assert.throws(() => addon.wakeCollectives(new Uint8Array(64)), RangeError);
    assert.throws(() => addon.wakeCollectives(new Uint8Array(0)), RangeError);
    wordsOf(region)[HEADER.worldSize] = 0x7fffffff;
    assert.throws(() => addon.barrier(whole, 0, 0), RangeError);
  });
});

describe("the exchange of cache lines that benches measure", () => {
  it("is refused memory that is too small, and gives up a side that stays alone", function () {
    const status = nativeAddon();
    if (!status.loaded) this.skip();
    const { addon } = status;
    const [lines, room] = [16, 256 * 16 + 4096];
    const bytes = new Uint8Array(new SharedArrayBuffer(room + 64));
    const first = (64 - addon.addressModulo(bytes, 64)) % 64;
    const memory = addon.bind(bytes.subarray(first, first + room), "u8", 1, room);
    assert.throws(() => addon.exchangeLines(memory, 0, 2 * lines, 1), RangeError);
    assert.throws(() => addon.exchangeLines(memory, 2, lines, 1), RangeError);
    assert.ok(addon.exchangeLines(memory, 0, lines, 1) < 0);
  });
});

describe("waiting policy", () => {
  it("spins only when every thread has a core to itself", () => {
    assert.ok(waitingPolicy(2, 2).spinMicros > 0);
    assert.equal(waitingPolicy(3, 2).spinMicros, 0);
  });

  it("never yields: a yield may cost a slice of time, a park only a wake-up", () => {
    for (const threads of [1, 2, 3, 8]) assert.equal(waitingPolicy(threads, 2).yieldMicros, 0);
  });
});
