/** What the system counts for a thread: there on Linux, absent and never zero elsewhere. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { countersBetween, readThreadCounters } from "../../src/core/thread-counters.js";

describe("the counters of a thread", () => {
  it("count what the thread reads, on Linux", function () {
    if (process.platform !== "linux" || readThreadCounters().readBytes === undefined) this.skip();
    const folder = mkdtempSync(join(tmpdir(), "shardloom-counters-"));
    try {
      const file = join(folder, "bytes");
      writeFileSync(file, new Uint8Array(3_000_000));
      const before = readThreadCounters();
      readFileSync(file);
      const { readBytes = 0, minorFaults = -1, majorFaults = -1 } = countersBetween(before, readThreadCounters());
      assert.ok(readBytes >= 3_000_000 && readBytes < 4_000_000, `${readBytes}`);
      assert.ok(minorFaults >= 0 && majorFaults >= 0);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("hold what helpers have read with the thread's own, and nothing of reading where one is not known", function () {
    const alone = readThreadCounters();
    if (process.platform !== "linux" || alone.readBytes === undefined) this.skip();
    // The thread as its own helper: everything twice.
    const [, id] = /task\/(\d+)$/.exec(readlinkSync("/proc/thread-self")) ?? [];
    const twice = readThreadCounters([Number(id)]);
    assert.ok((twice.readBytes ?? 0) >= 2 * alone.readBytes, `${twice.readBytes} of ${alone.readBytes}`);
    const { readBytes, minorFaults, cpuNs } = readThreadCounters([2 ** 30]);
    assert.deepEqual([readBytes, minorFaults], [undefined, undefined]);
    assert.ok((cpuNs ?? 0) > 0);
  });

  it("leave out what one of two times does not tell: absent is not zero", () => {
    assert.deepEqual(countersBetween({ readBytes: 5, cpuNs: 3 }, { readBytes: 9, diskBytes: 4 }), { readBytes: 4 });
    assert.deepEqual(countersBetween({}, {}), {});
  });
});
