/**
 * Files that misbehave while the command line reads or writes them: a network file system that gives a little at a time, a
 * file that another program changes, a full disk, permissions that are missing. A line on stderr says what is wrong, no rank
 * is left, and no output that loads. What the system does is played by a library that is preloaded
 * (test/fixtures/failing-calls.c), and by other users.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { temporaryFolder } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";
import { type Finished, MAIN, startCli } from "./cli-process.js";

const { EACCES, EAGAIN, EDQUOT, EINTR, EIO, ENOSPC, ESTALE } = constants.errno;

/** What is to go wrong: see the library. */
interface Failure {
  readonly call: "open" | "read" | "write" | "sync";
  readonly path: string;
  readonly after?: number;
  readonly every?: number;
  readonly with: string;
}

describe("files that misbehave", function () {
  this.timeout(60_000);
  const folder = temporaryFolder();
  let library = "";
  let built = "";

  before(function () {
    if (process.platform !== "linux") return this.skip();
    built = mkdtempSync(join(tmpdir(), "shardloom-calls-"));
    library = join(built, "failing-calls.so");
    try {
      const source = fixture("failing-calls.c");
      execFileSync("cc", ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"]);
    } catch (error) {
      if (process.env["CI"] !== undefined) throw error;
      console.warn(`      there is no compiler: ${error instanceof Error ? error.message : String(error)}`);
      this.skip();
    }
  });
  after(() => rmSync(built, { recursive: true, force: true }));

  beforeEach(() => mkdirSync(join(folder.path, "results")));

  const environmentOf = (failure: Failure): NodeJS.ProcessEnv => ({
    LD_PRELOAD: library,
    FAIL_CALL: failure.call,
    FAIL_PATH: failure.path,
    FAIL_AFTER: String(failure.after ?? 0),
    FAIL_EVERY: String(failure.every ?? 1),
    FAIL_WITH: failure.with,
  });
  const run = (args: readonly string[], failure: Failure): Promise<Finished> => {
    const { child, finished } = startCli(args, environmentOf(failure));
    child.stdin.end();
    return finished;
  };
  /** A copy of a model, of which there is another version. */
  const copyOf = (model = "llama/bf16"): string => {
    const copy = join(folder.path, "model");
    cpSync(fixture(`tiny/${model}`), copy, { recursive: true });
    copyFileSync(join(copy, "model.safetensors"), join(copy, "model.safetensors.new"));
    return copy;
  };
  /** On more ranks than there are KV heads: some read what others wait for. */
  const generate = (model: string): string[] => {
    return ["generate", "--model", model, "--tp", "4", "--prompt-ids", "1,2,3", "--max-tokens", "4"];
  };

  for (const [what, how] of [
    ["few bytes at a time", { every: 1, with: "short=700" }],
    ["nothing when a signal comes, every other time", { every: 2, with: `errno=${EINTR}` }],
    ["nothing as it is busy, every third time", { every: 3, with: `errno=${EAGAIN}` }],
  ] as const) {
    it(`a file system that gives ${what} is a slow one, and no more`, async function () {
      this.timeout(120_000);
      const model = fixture("tiny/llama/bf16");
      const [plain, failing] = await Promise.all([
        run(generate(model), { call: "read", path: "no such file", with: "short=1" }),
        run(generate(model), { call: "read", path: "model.safetensors", ...how }),
      ]);
      assert.deepEqual([failing.code, failing.stdout], [0, plain.stdout], failing.stderr);
      assert.notEqual(plain.stdout, "");
    });
  }

  const reading: readonly { what: string; failure: Omit<Failure, "path">; codes: string; reason: RegExp }[] = [
    {
      what: "whose device fails",
      failure: { call: "read", after: 20, with: `errno=${EIO}` },
      codes: "READ_FAILED",
      reason: /Input\/output error|EIO/,
    },
    {
      what: "that a server no longer knows",
      failure: { call: "read", after: 20, with: `errno=${ESTALE}` },
      codes: "READ_FAILED",
      reason: /[Ss]tale|ESTALE/,
    },
    {
      what: "that the file system is too busy for",
      failure: { call: "read", after: 20, with: `errno=${EAGAIN}` },
      codes: "READ_FAILED",
      reason: /temporarily unavailable/,
    },
    {
      what: "that may not be opened",
      failure: { call: "open", with: `errno=${EACCES}` },
      codes: "READ_FAILED",
      reason: /EACCES/,
    },
    {
      what: "that becomes shorter",
      failure: { call: "read", after: 24, with: "shrink" },
      codes: "SHORT_READ|FILE_CHANGED|FILE_TOO_SHORT|TRUNCATED_FILE|OFFSETS_BEYOND_FILE",
      reason: /model\.safetensors/,
    },
    {
      what: "that is removed",
      failure: { call: "read", after: 24, with: "remove" },
      codes: "FILE_CHANGED|FILE_NOT_FOUND|NO_SAFETENSORS",
      reason: /removed|model/,
    },
    {
      what: "that is replaced",
      failure: { call: "read", after: 24, with: "replace" },
      codes: "FILE_CHANGED",
      reason: /another one took its place|opened another one/,
    },
    {
      what: "that is written to",
      failure: { call: "read", after: 24, with: "rewrite" },
      codes: "FILE_CHANGED",
      reason: /written to|opened another one/,
    },
  ];
  for (const { what, failure, codes, reason } of reading) {
    it(`weights in a file ${what} while ranks read it: one line, and no rank is left`, async () => {
      const model = copyOf();
      const { code, stdout, stderr } = await run(generate(model), { ...failure, path: "model.safetensors" });
      assert.match(stderr, new RegExp(`^shardloom: error\\[(${codes})\\]: .*\\n$`));
      assert.match(stderr, reason);
      assert.ok(stderr.includes(model), stderr);
      assert.deepEqual([code, stdout], [3, ""]);
    });
  }

  for (const command of ["quantize", "shard"] as const) {
    const argsOf = (model: string): string[] => [
      ...[command, "--model", model, "--out", join(folder.path, "results", "out")],
      ...(command === "quantize" ? ["--format", "nf4"] : ["--tp", "2"]),
    ];
    const results = (): string[] => readdirSync(join(folder.path, "results"));

    for (const [what, failure, reason] of [
      ["the disk is full", { call: "write", after: 3, with: `errno=${ENOSPC}` }, /ENOSPC/],
      ["the disk is full when it comes to writing back", { call: "sync", with: `errno=${ENOSPC}` }, /ENOSPC/],
      ["the user's share of it is used up", { call: "write", after: 2, with: `errno=${EDQUOT}` }, /EDQUOT|UNKNOWN/],
      ["the device fails", { call: "write", after: 1, with: `errno=${EIO}` }, /EIO/],
      ["files may not be made", { call: "open", with: `errno=${EACCES}` }, /EACCES/],
    ] as const) {
      it(`${command}: says that ${what}, and leaves nothing`, async () => {
        const args = argsOf(fixture("tiny/llama/bf16"));
        const { code, stdout, stderr } = await run(args, { ...failure, path: ".out.incomplete-" });
        assert.match(stderr, /^shardloom: error\[WRITE_FAILED\]: cannot write .*\n$/);
        assert.match(stderr, reason);
        assert.deepEqual([code, stdout, results()], [5, "", []]);
      });
    }

    it(`${command}: of a file that is replaced meanwhile nothing is made`, async () => {
      const model = copyOf();
      const failure: Failure = { call: "read", path: "model.safetensors", after: 24, with: "replace" };
      const { code, stdout, stderr } = await run(argsOf(model), failure);
      assert.match(stderr, /^shardloom: error\[FILE_CHANGED\]: .*\n$/);
      assert.deepEqual([code, stdout, results()], [3, "", []]);
    });

    it(`${command}: killed in the middle, it leaves nothing that loads, and is in nobody's way`, async () => {
      const failure: Failure = { call: "write", path: ".out.incomplete-", after: 4, with: "hang" };
      const { child, finished } = startCli(argsOf(fixture("tiny/llama/bf16")), environmentOf(failure));
      for await (const text of child.stderr) if (String(text).includes("hanging")) break;
      child.kill("SIGKILL");
      await finished;
      const [rest = "", ...others] = results();
      assert.match(rest, /^\.out\.incomplete-/);
      assert.deepEqual(others, []);
      const sound: Failure = { call: "read", path: "no such file", with: "short=1" };
      const loaded = await run(generate(join(folder.path, "results", rest)), sound);
      assert.match(loaded.stderr, /^shardloom: error\[/);
      assert.equal(loaded.code, 3);
      assert.equal((await run(argsOf(fixture("tiny/llama/bf16")), sound)).code, 0);
    });
  }

  describe("that others may not read", () => {
    /** As somebody who owns nothing: root may read everything. */
    const asNobody = async (args: readonly string[]): Promise<{ code: number; stderr: string }> => {
      const ids = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
      const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "ignore", "pipe"], ...ids });
      let stderr = "";
      child.stderr.on("data", (text) => {
        stderr += String(text);
      });
      const [code] = await once(child, "close");
      return { code, stderr };
    };

    for (const [what, path, mode] of [
      ["weights", "model.safetensors", 0o000],
      ["config.json", "config.json", 0o000],
      ["a directory whose names may not be read", ".", 0o111],
      ["a directory that may not be entered", ".", 0o444],
    ] as const) {
      it(`${what}: READ_FAILED, naming what and why`, async function () {
        chmodSync(folder.path, 0o755);
        const model = copyOf();
        // Where nobody may read this checkout, or may run node, there is nothing to see.
        if ((await asNobody(generate(model))).code !== 0) return this.skip();
        chmodSync(join(model, path), mode);
        try {
          const { code, stderr } = await asNobody(generate(model));
          assert.match(stderr, /^shardloom: error\[READ_FAILED\]: .*EACCES.*\n$/);
          assert.ok(stderr.includes(model), stderr);
          assert.equal(code, 3);
        } finally {
          chmodSync(join(model, path), 0o755);
        }
        assert.ok(existsSync(model));
      });
    }
  });
});
