/** What the system counts for a thread: there on Linux, absent and never zero elsewhere. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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

  it("leave out what one of two times does not tell: absent is not zero", () => {
    assert.deepEqual(countersBetween({ readBytes: 5, cpuNs: 3 }, { readBytes: 9, diskBytes: 4 }), { readBytes: 4 });
    assert.deepEqual(countersBetween({}, {}), {});
  });
});
