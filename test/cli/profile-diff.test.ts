/** `shardloom profile diff`: what became of every phase and tensor, and files that are no profiles. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import type { ProfileComparison } from "../../src/cli/profile-comparison.js";
import { comparisonLines } from "../../src/cli/profile-diff.js";
import { cli, MAIN } from "./cli-process.js";
import { HOSTILE_NAME, knownProfile } from "./load-profile-fixture.js";
import { testFolder } from "./models.js";

describe("shardloom profile diff", () => {
  const folder = testFolder();
  const write = (name: string, value: unknown): string => folder.write(name, JSON.stringify(value));

  it("compares ranks by phase, with ratios, and tensors on their slowest rank", async () => {
    const [before, after] = [
      write("a.json", knownProfile([100, 120, 400])),
      write("b.json", knownProfile([100, 60, 200])),
    ];
    const { code, stdout, stderr } = await cli(["profile", "diff", before, after, "--json"]);
    assert.deepEqual([code, stderr], [0, ""]);
    const { totalNs, bytesRead, ranks, tensors }: ProfileComparison = JSON.parse(stdout);
    assert.deepEqual(totalNs, { before: 660e6, after: 460e6, ratio: 460 / 660 });
    assert.deepEqual(bytesRead, { before: 12_006_000, after: 12_006_000, ratio: 1 });
    assert.deepEqual(
      ranks.map(({ phases }) => phases.read.selfNs),
      [
        { before: 105e6, after: 105e6, ratio: 1 },
        { before: 125e6, after: 65e6, ratio: 65 / 125 },
        { before: 405e6, after: 205e6, ratio: 205 / 405 },
      ],
    );
    assert.deepEqual(ranks[2]?.phases.wait.selfNs, { before: 0, after: 0, ratio: null });
    assert.deepEqual(tensors, [
      { name: "model.embed_tokens.weight", durationNs: { before: 420e6, after: 220e6, ratio: 220 / 420 } },
      { name: HOSTILE_NAME, durationNs: { before: 40e6, after: 40e6, ratio: 1 } },
    ]);
  });

  it("prints the same as a table, in which no name plays tricks, and compares other numbers of ranks", async () => {
    const [before, after] = [write("a.json", knownProfile([100, 120, 400])), write("b.json", knownProfile([200]))];
    const { code, stdout } = await cli(["profile", "diff", before, after, "--top", "2"]);
    assert.equal(code, 0);
    assert.match(stdout, /^before: m, 3 ranks, 2026-01-02/m);
    assert.match(stdout, /^until every rank was ready +660 ms +460 ms +0\.70$/m);
    assert.match(stdout, /^ *0 +read +105 ms +205 ms +1\.95 +bytes +4\.00 MB +4\.00 MB +1\.00$/m);
    assert.match(stdout, /^ *1 +read +125 ms +none +-/m);
    assert.match(stdout, /^model\.embed_tokens\.weight +420 ms +220 ms +0\.52$/m);
    assert.ok(!stdout.includes("\u001b"));
  });

  it("lists no tensor where none is wanted", () => {
    const changes = { before: 1, after: 1, ratio: 1 };
    const compared = { model: "m", startedAt: "now", worldSize: 1 };
    const lines = comparisonLines({
      format: "shardloom-load-profile-diff",
      version: 1,
      before: compared,
      after: compared,
      totalNs: changes,
      bytesRead: changes,
      ranks: [],
      tensors: [],
    });
    assert.ok(!lines.some((line) => line.includes("tensors")));
  });

  const wrong: readonly { readonly what: string; readonly content: unknown; readonly names: RegExp }[] = [
    { what: "no JSON", content: undefined, names: /in JSON/ },
    { what: "an array", content: [], names: /an object at the file but received an array/ },
    {
      what: "another document",
      content: { format: "shardloom-trace", version: 1 },
      names: /version 1 but received format "shardloom-trace"/,
    },
    { what: "a later version", content: { ...knownProfile(), version: 2 }, names: /version 1 but .*version 2/ },
    {
      what: "ranks that are none",
      content: { ...knownProfile(), ranks: [3] },
      names: /an object at ranks\[0\] but received 3/,
    },
    {
      what: "a negative time",
      content: { ...knownProfile(), totalNs: -1 },
      names: /a whole number at totalNs but received -1/,
    },
    {
      what: "a phase that is missing",
      content: { ...knownProfile(), ranks: knownProfile().ranks.map((rank) => ({ ...rank, phases: {} })) },
      names: /ranks\[0\]\.phases\.index/,
    },
    {
      what: "a span of no phase",
      content: {
        ...knownProfile(),
        ranks: knownProfile().ranks.map((rank) => ({ ...rank, spans: [{ name: "a", phase: "sleep", durationNs: 1 }] })),
      },
      names: /one of index, .* at ranks\[0\]\.spans\[0\]\.phase but received "sleep"/,
    },
  ];
  for (const { what, content, names } of wrong) {
    it(`refuses ${what}, and names the file and the place`, async () => {
      const good = write("good.json", knownProfile());
      const bad = folder.write("bad.json", content === undefined ? "{" : JSON.stringify(content));
      const { code, stdout, stderr } = await cli(["profile", "diff", good, bad]);
      assert.deepEqual([code, stdout], [2, ""]);
      assert.ok(stderr.startsWith("shardloom: error[INVALID_PROFILE]: "), stderr);
      assert.match(stderr, /bad\.json/);
      assert.match(stderr, names);
    });
  }

  it("reads what another command prints, and no device, which would never end", async function () {
    if (process.platform !== "linux") return this.skip();
    const good = write("good.json", knownProfile());
    const piped = 'cat "$1" | "$2" "$3" profile diff "$1" /dev/stdin';
    assert.match(execFileSync("sh", ["-c", piped, "sh", good, process.execPath, MAIN], { encoding: "utf8" }), /\S/);
    const endless = await cli(["profile", "diff", "/dev/zero", good]);
    assert.match(
      endless.stderr,
      /^shardloom: error\[INVALID_PROFILE\]: cannot read \/dev\/zero: it is not a regular file\n$/,
    );
    assert.equal(endless.code, 2);
  });

  it("refuses a file that is not there, a directory, and a lone file", async () => {
    const absent = await cli(["profile", "diff", join(folder.path, "absent"), join(folder.path, "absent")]);
    assert.equal(absent.code, 2);
    assert.match(absent.stderr, /INVALID_PROFILE.*absent.*ENOENT/);
    const directory = await cli(["profile", "diff", folder.path, folder.path]);
    assert.match(directory.stderr, /INVALID_PROFILE.*it is not a regular file/);
    const lone = await cli(["profile", "diff", "one.json"]);
    assert.equal(lone.code, 2);
    assert.match(lone.stderr, /INVALID_USAGE.*after/);
  });
});
