/** `shardloom profile`: what it prints and writes, and that a gate on skew fails with a rank and a phase. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeWholeFile } from "../../src/checkpoint/whole-file.js";
import { profileLines } from "../../src/cli/profile-table.js";
import { profileTrace } from "../../src/cli/profile-trace.js";
import { LOAD_PHASES, type LoadProfile } from "../../src/index.js";
import { cli } from "./cli-process.js";
import { HOSTILE_NAME, knownProfile, schemaErrors } from "./load-profile-fixture.js";
import { TINY_LLAMA, testFolder } from "./models.js";

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const ESCAPE = /\u001b/;

describe("shardloom profile", () => {
  const folder = testFolder();
  const profile = (...args: readonly string[]): string[] => ["profile", "--model", TINY_LLAMA, ...args];

  it("prints a profile as JSON that the published schema accepts, and that adds up", async () => {
    const { code, stdout, stderr } = await cli(profile("--tp", "2", "--json", "-"));
    assert.deepEqual([code, stderr], [0, ""]);
    const made: LoadProfile = JSON.parse(stdout);
    assert.equal(schemaErrors(made), null);
    assert.deepEqual([made.worldSize, made.subject.model], [2, TINY_LLAMA]);
    for (const { phases, totalNs } of made.ranks) {
      assert.equal(
        LOAD_PHASES.reduce((sum, phase) => sum + phases[phase].selfNs, 0),
        totalNs,
      );
    }
  });

  it("writes JSON and a trace, whole, and prints a table without control characters where nobody watches", async () => {
    mkdirSync(join(folder.path, "out"));
    const [json, trace] = [join(folder.path, "out", "p.json"), join(folder.path, "out", "t.json")];
    const quantized = ["--quantization", "bitsandbytes", "--quantization-option", "type=nf4"];
    const args = profile("--tp", "2", "--json", json, "--trace", trace, "--top", "3", ...quantized);
    const { code, stdout, stderr } = await cli(args);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.deepEqual(readdirSync(join(folder.path, "out")).sort(), ["p.json", "t.json"]);
    const made: LoadProfile = JSON.parse(readFileSync(json, "utf8"));
    assert.equal(schemaErrors(made), null);
    assert.equal(made.subject.quantization, "bitsandbytes");
    assert.deepEqual(JSON.parse(readFileSync(trace, "utf8")), profileTrace(made));
    assert.doesNotMatch(stdout, ESCAPE);
    assert.match(stdout, /^rank 0 [irsqpw.]+ +\d/m);
    assert.match(stdout, /^skew \d+\.\d\d: rank [01] took .* where the median is /m);
  });

  it("--max-skew is a gate: exit code 6, and a line that names rank and phase; the table is printed all the same", async () => {
    // No two ranks take the same number of nanoseconds.
    const { code, stdout, stderr } = await cli(profile("--tp", "2", "--max-skew", "1"));
    assert.equal(code, 6, stderr);
    const phases = LOAD_PHASES.join("|");
    const line = `^shardloom: error\\[LOAD_SKEW\\]: expected a skew of at most 1 but received \\d+\\.\\d\\d: rank [01] took .*it lost most in (${phases}), .*\\n$`;
    assert.match(stderr, new RegExp(line));
    assert.match(stdout, /^skew /m);
    assert.equal((await cli(profile("--tp", "1", "--max-skew", "1"))).code, 0);
  });

  const wrong: readonly {
    readonly what: string;
    readonly args: () => readonly string[];
    readonly exitCode: number;
    readonly code: string;
    readonly names: RegExp;
  }[] = [
    { what: "no model", args: () => ["profile"], exitCode: 2, code: "INVALID_USAGE", names: /--model/ },
    {
      what: "a gate below 1",
      args: () => profile("--max-skew", "0.9"),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--max-skew.*at least 1.*"0.9"/,
    },
    {
      what: "a gate that is no number",
      args: () => profile("--max-skew", "NaN"),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--max-skew/,
    },
    {
      what: "a number of tensors that is none",
      args: () => profile("--top", "-1"),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--top.*"-1"/,
    },
    {
      what: "two results on stdout",
      args: () => profile("--json", "-", "--trace", "-"),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--json and --trace.*"-"/,
    },
    {
      what: "two results in one file",
      args: () => profile("--json", join(folder.path, "same"), "--trace", join(folder.path, ".", "same")),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--json and --trace.*same/,
    },
    {
      what: "a file in no directory",
      args: () => profile("--json", join(folder.path, "absent", "p.json")),
      exitCode: 5,
      code: "WRITE_FAILED",
      names: /absent.p\.json.*ENOENT/,
    },
    {
      what: "a file below a file",
      args: () => profile("--trace", join(folder.write("plain", ""), "t.json")),
      exitCode: 5,
      code: "WRITE_FAILED",
      names: /plain.t\.json/,
    },
    {
      what: "a directory",
      args: () => profile("--json", folder.path),
      exitCode: 5,
      code: "WRITE_FAILED",
      names: /it is a directory/,
    },
  ];
  for (const { what, args, exitCode, code, names } of wrong) {
    it(`wrong input: ${what}, before anything is loaded`, async () => {
      const result = await cli(args());
      assert.deepEqual([result.code, result.stdout], [exitCode, ""], result.stderr);
      assert.ok(result.stderr.startsWith(`shardloom: error[${code}]: `), result.stderr);
      assert.match(result.stderr, names);
    });
  }

  it("a disk that is full is an error, and nothing is left of the file", async function () {
    if (process.platform !== "linux") this.skip();
    const { code, stderr } = await cli(profile("--json", "/dev/full"));
    assert.equal(code, 5);
    assert.match(stderr, /error\[WRITE_FAILED\]: cannot write \/dev\/full: .*ENOSPC/);
  });

  it("a model that is not there leaves no file", async () => {
    const json = join(folder.path, "none.json");
    const { code } = await cli(["profile", "--model", join(folder.path, "absent"), "--json", json]);
    assert.equal(code, 3);
    assert.ok(!readdirSync(folder.path).some((name) => name.includes("none.json")));
  });
});

describe("a file that is written as a whole", () => {
  const folder = testFolder();

  it("replaces what was there, also behind a link, and leaves nothing beside it", () => {
    mkdirSync(join(folder.path, "files"));
    const [file, link] = [join(folder.path, "files", "a"), join(folder.path, "files", "b")];
    writeFileSync(file, "a longer text that was there");
    symlinkSync(file, link);
    writeWholeFile(link, "short");
    assert.equal(readFileSync(file, "utf8"), "short");
    assert.equal(readFileSync(link, "utf8"), "short");
    assert.deepEqual(readdirSync(join(folder.path, "files")).sort(), ["a", "b"]);
  });
});

describe("the table of a load profile", () => {
  const options = { top: 2, width: 80, coloured: false };

  it("has a bar for each rank, as long as it took, and phases in proportion", () => {
    const lines = profileLines(knownProfile(), options);
    const bars = lines.filter((line) => /^rank \d [irsqpw.]+ /.test(line));
    assert.equal(bars.length, 3);
    // 660 ms in all from when the ranks began: 62 columns stand for 560 ms.
    assert.match(bars[2] ?? "", /^rank 2 i{1}r{45}s{2,3}q{3}p{4,5}\.{5,6} {1,}560 ms$/);
    assert.match(bars[0] ?? "", /w{33} +260 ms$/);
    for (const bar of bars) assert.ok(bar.length <= 80, bar);
    assert.equal(
      lines.at(-1),
      "skew 2.00: rank 2 took 560 ms where the median is 280 ms; it lost most in read, 280 ms more than the median there",
    );
  });

  it("shows what the system counted, and a dash where it did not", () => {
    const text = profileLines(knownProfile(), options).join("\n");
    assert.match(text, /^rank 0 +- +- +- +- +- +- +4\.00 MB$/m);
    assert.match(text, /^rank 1 +1 MB +3\.00 MB +900 +3 +- +- +4\.00 MB$/m);
  });

  it("lists the slowest tensors on their slowest rank", () => {
    const text = profileLines(knownProfile(), options).join("\n");
    assert.match(text, /^model\.embed_tokens\.weight +2 +420 ms +140 ms +read +4 MB$/m);
    assert.ok(
      !profileLines(knownProfile(), { ...options, top: 0 })
        .join("\n")
        .includes("slowest"),
    );
  });

  it("lets no name reach the terminal as it is", () => {
    const coloured = profileLines(knownProfile(), { ...options, coloured: true }).join("\n");
    assert.match(coloured, ESCAPE);
    assert.ok(!coloured.includes("\u001b[31m") && coloured.includes("\\u001b[31m"));
    assert.doesNotMatch(profileLines(knownProfile(), options).join("\n"), ESCAPE);
  });

  it("is what the schema describes: an unknown member is allowed, a missing or negative one is not", () => {
    const known = knownProfile();
    assert.equal(schemaErrors(known), null);
    assert.equal(schemaErrors({ ...known, later: 1 }), null);
    assert.notEqual(schemaErrors({ ...known, version: 2 }), null);
    assert.notEqual(schemaErrors({ ...known, ranks: known.ranks.map(({ phases: _, ...rank }) => rank) }), null);
    assert.notEqual(schemaErrors({ ...known, totalNs: -1 }), null);
    assert.notEqual(schemaErrors({ ...known, totalNs: 0.5 }), null);
  });
});

describe("the trace of a load profile", () => {
  it("has a track a rank, on which phases lie within their spans and spans do not overlap", () => {
    const known = knownProfile();
    const { traceEvents } = profileTrace(known);
    const names = traceEvents.flatMap((event) =>
      event.ph === "M" && event.name === "thread_name" ? [event.args["name"]] : [],
    );
    assert.deepEqual(names, ["rank 0", "rank 1", "rank 2"]);
    for (const { rank, spans } of known.ranks) {
      const slices = traceEvents.flatMap((event) => (event.ph === "X" && event.tid === rank ? [event] : []));
      assert.equal(
        slices.length,
        spans.reduce((sum, { parts }) => sum + 1 + parts.length, 0),
      );
      let outer = { ts: 0, end: 0 };
      let innerEnd = 0;
      for (const { ts, dur, args } of slices) {
        const isSpan = args?.["span"] === undefined;
        if (isSpan) {
          assert.ok(ts >= outer.end - 1e-6);
          outer = { ts, end: ts + dur };
          innerEnd = ts;
        } else {
          assert.ok(ts >= innerEnd - 1e-6 && ts + dur <= outer.end + 1e-6);
          innerEnd = ts + dur;
        }
      }
    }
    assert.ok(traceEvents.some((event) => event.ph === "X" && event.name === HOSTILE_NAME));
  });

  it("counts the bytes that each rank has read", () => {
    const { traceEvents } = profileTrace(knownProfile());
    const values = traceEvents.flatMap((event) =>
      event.ph === "C" && event.name === "rank 1: bytes read" ? [event.args.value] : [],
    );
    assert.deepEqual(values, [0, 4_000_000, 4_002_000]);
  });
});
