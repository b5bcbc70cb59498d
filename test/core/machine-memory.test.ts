import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type MachineMemory, readMemory, usableBytes } from "../../src/core/machine-memory.js";

const GIB = 2 ** 30;
const TABLE = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n";

describe("the memory of the machine", () => {
  let root: string;

  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), "shardloom-memory-"));
  });

  afterEach(() => rmSync(root, { recursive: true }));

  function read(files: Readonly<Record<string, string>>): MachineMemory {
    for (const [path, content] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), content);
    }
    return readMemory(root);
  }

  it("knows how much there is, what may be used, and the mode of huge pages", () => {
    const memory = read({
      "proc/meminfo": TABLE,
      "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
      "proc/self/cgroup": "0::/box\n",
      "sys/fs/cgroup/box/memory.max": `${2 * GIB}\n`,
    });
    assert.deepEqual(memory, {
      totalBytes: 16 * GIB,
      availableBytes: 8 * GIB,
      limitBytes: 2 * GIB,
      nodes: [],
      hugePages: "madvise",
    });
  });

  it("says what each node has, and of a process what its control group lets it use", () => {
    const node = (id: number, kilobytes: number) => ({
      [`sys/devices/system/node/node${id}/meminfo`]: `Node ${id} MemTotal:  ${kilobytes} kB\nNode ${id} MemFree:  1 kB\n`,
    });
    const free = read({ "proc/meminfo": TABLE, ...node(10, 0), ...node(2, 4) });
    assert.deepEqual(free.nodes, [
      { id: 2, totalBytes: 4096 },
      { id: 10, totalBytes: 0 },
    ]);
    assert.equal(usableBytes(free), 16 * GIB);
    assert.equal(usableBytes({ ...free, limitBytes: GIB }), GIB);
  });

  it("takes a limit beyond all memory, and the word max, for none", () => {
    const limit = (files: Readonly<Record<string, string>>) => read({ "proc/meminfo": TABLE, ...files }).limitBytes;
    const first = "sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert.equal(limit({ "proc/self/cgroup": "2:memory:/\n", [first]: "9223372036854771712\n" }), null);
    assert.equal(limit({ "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n" }), null);
  });

  it("is what Node.js says where the system tells nothing", () => {
    const { totalBytes, availableBytes, limitBytes, hugePages } = read({});
    assert.ok(totalBytes > 0 && availableBytes > 0);
    assert.deepEqual([limitBytes, hugePages], [null, null]);
  });
});
