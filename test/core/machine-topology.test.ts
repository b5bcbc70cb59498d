import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { coresOf, type MachineTopology, readTopology } from "../../src/core/machine-topology.js";
import { parseIds } from "../../src/core/system-files.js";

/** Files of a system, by path. */
type Files = Readonly<Record<string, string>>;

const CPU = "sys/devices/system/cpu";
const NODE = "sys/devices/system/node";

/** Two CPUs of one core each, as a small virtual machine has them. */
const SMALL: Files = {
  "proc/self/status": "Name:\tnode\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n",
  [`${CPU}/online`]: "0-1\n",
  [`${CPU}/cpu0/topology/thread_siblings_list`]: "0\n",
  [`${CPU}/cpu1/topology/thread_siblings_list`]: "1\n",
  [`${NODE}/node0/cpulist`]: "0-1\n",
};

/** Two sockets of 64 cores with two CPUs each, numbered as Linux does: first one of every core, then the others. */
function twoSockets(allowed: string): Files {
  const siblings = Array.from({ length: 256 }, (_, cpu): [string, string] => [
    `${CPU}/cpu${cpu}/topology/thread_siblings_list`,
    `${cpu % 128},${(cpu % 128) + 128}\n`,
  ]);
  return {
    "proc/self/status": `Cpus_allowed_list:\t${allowed}\n`,
    [`${CPU}/online`]: "0-255\n",
    [`${NODE}/node0/cpulist`]: "0-63,128-191\n",
    [`${NODE}/node1/cpulist`]: "64-127,192-255\n",
    [`${NODE}/possible`]: "0-1\n",
    ...Object.fromEntries(siblings),
  };
}

describe("the topology of the machine", () => {
  let root: string;

  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), "shardloom-topology-"));
  });

  afterEach(() => rmSync(root, { recursive: true }));

  function read(files: Files): MachineTopology {
    for (const [path, content] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), content);
    }
    return readTopology({ root, parallelism: 3 });
  }

  it("knows CPUs, cores and nodes", () => {
    const small = read(SMALL);
    assert.deepEqual(small, {
      cpus: [
        { id: 0, core: "0", node: 0 },
        { id: 1, core: "1", node: 0 },
      ],
      quota: null,
      known: true,
    });
    const large = read(twoSockets("0-255"));
    const cores = coresOf(large);
    assert.equal(cores.length, 128);
    assert.deepEqual(
      cores[64]?.map(({ id, node }) => [id, node]),
      [
        [64, 1],
        [192, 1],
      ],
    );
  });

  it("leaves out CPUs that the process may not use or that are off", () => {
    const ids = ({ cpus }: MachineTopology): number[] => cpus.map(({ id }) => id);
    assert.deepEqual(ids(read(twoSockets("3,60-65"))), [3, 60, 61, 62, 63, 64, 65]);
    assert.deepEqual(ids(read({ ...SMALL, "proc/self/status": "Cpus_allowed_list:\t0-127\n" })), [0, 1]);
  });

  it("takes the least of the quotas above it, of either version of control groups", () => {
    const quota = (files: Files): number | null => {
      const { quota } = read({ ...SMALL, ...files });
      rmSync(join(root, "sys/fs"), { recursive: true, force: true });
      return quota;
    };
    assert.equal(quota({ "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n" }), null);
    assert.equal(
      quota({
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
      }),
      1.5,
    );
    assert.equal(quota({ "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n" }), 0.5);
    assert.equal(
      quota({
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/y\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
      }),
      2,
    );
    assert.equal(
      quota({
        "proc/self/cgroup": "1:cpu:/z\n",
        "sys/fs/cgroup/cpu/z/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/z/cpu.cfs_period_us": "100000\n",
      }),
      null,
    );
  });

  it("is made up, and says so, where the system tells nothing", () => {
    const made = read({});
    assert.equal(made.known, false);
    assert.equal(coresOf(made).length, 3);
  });

  it("survives files that say something else", () => {
    const strange = read({
      ...SMALL,
      [`${CPU}/online`]: "all of them",
      [`${CPU}/cpu0/topology/thread_siblings_list`]: "",
      [`${NODE}/node0/cpulist`]: "\n",
      [`${NODE}/nodeX/cpulist`]: "0",
      "proc/self/cgroup": "what\n0::/../../..\n",
      "sys/fs/cgroup/cpu.max": "many 0\n",
    });
    assert.equal(coresOf(strange).length, 2);
    assert.equal(strange.quota, null);
  });
});

describe("lists of ids", () => {
  it("are read in order, once each", () => {
    assert.deepEqual(parseIds("8,0-3,2,10-11"), [0, 1, 2, 3, 8, 10, 11]);
  });

  it("are refused when they are none", () => {
    for (const text of [null, "", "x", "1-", "-1", "3-1", "0-99999999999", "1,,2"]) assert.equal(parseIds(text), null);
  });
});
