import assert from "node:assert/strict";
import { cli } from "./cli-process.js";

const BRIEFLY = ["doctor", "--no-probe"];

describe("shardloom doctor", () => {
  it("--json reports the machine, the addon, the kernels and why, and where ranks would run", async () => {
    const { stdout, code } = await cli([...BRIEFLY, "--json", "--tp", "2", "--threads-per-rank", "1"]);
    assert.equal(code, 0);
    const report = JSON.parse(stdout);
    const names = ["shardloom", "node", "system", "cpu", "memory", "addon", "kernels", "placement", "limits"];
    assert.deepEqual(Object.keys(report), names);
    assert.equal(report.node, process.version);
    assert.deepEqual(Object.keys(report.cpu), ["model", "features", "cores", "cpus", "quota", "nodes"]);
    assert.deepEqual(Object.keys(report.memory), ["totalBytes", "availableBytes", "limitBytes", "nodes", "hugePages"]);
    assert.ok(report.cpu.cores >= 1 && report.cpu.cpus.length >= report.cpu.cores);
    assert.ok(report.memory.totalBytes > 0);
    assert.equal(report.addon.loaded, true);
    assert.match(report.addon.path, /\.node$/);
    assert.equal(report.kernels.isa, report.kernels.supported[0]);
    assert.equal(report.placement.ranks, 2);
    assert.equal(report.placement.threadsPerRank, 1);
    assert.equal(report.placement.places.length, 2);
    assert.equal(report.limits, null);
  });

  it("says what is forced, and why the addon is not used", async () => {
    const forced = await cli(BRIEFLY, { env: { SHARDLOOM_ISA: "portable" } });
    assert.match(forced.stdout, /^kernels +portable: SHARDLOOM_ISA=portable$/m);
    const off = await cli(BRIEFLY, { env: { SHARDLOOM_KERNELS: "reference" } });
    assert.match(off.stdout, /^addon +not used: SHARDLOOM_KERNELS=reference$/m);
    assert.match(off.stdout, /^kernels +reference/m);
  });

  it("measures, and prints a line for every figure", async () => {
    const { stdout, code } = await cli(["doctor"]);
    assert.equal(code, 0);
    const labels = ["CPU", "cores", "memory", "huge pages", "threads", "pinning", "memory read", "f32 multiply-add"];
    for (const label of labels) assert.match(stdout, new RegExp(`^${label} `, "m"));
  });
});
