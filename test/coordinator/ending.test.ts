import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("./ending.js", import.meta.url));

/** Long enough for any machine; a process that is killed by it fails the test. */
const KILL_AFTER_MS = 30_000;

interface Ending {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run(ending: string, ...nodeOptions: readonly string[]): Promise<Ending> {
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      [...nodeOptions, script, ending],
      { timeout: KILL_AFTER_MS, killSignal: "SIGKILL" },
      (_error, stdout, stderr) => resolve({ exitCode: child.exitCode, stdout, stderr }),
    );
  });
}

describe("a process with ranks", () => {
  it("ends by itself after close, and ranks print to stderr only", async () => {
    const { exitCode, stdout, stderr } = await run("close");
    assert.equal(stdout, "answer 2\n");
    assert.match(stderr, /fake rank 1 prints to stdout/);
    assert.equal(exitCode, 0);
  });

  it("ends by itself when it is done and nobody closes the idle ranks", async () => {
    const { exitCode, stdout } = await run("forget");
    assert.equal(stdout, "answer 2\n");
    assert.equal(exitCode, 0);
  });

  it("stays alive until a step in flight is done", async () => {
    const { exitCode, stdout } = await run("step-after-pause");
    assert.equal(stdout, "answer 2\n");
    assert.equal(exitCode, 0);
  });

  it("ends by itself after a rank crashed in a step, without close", async () => {
    const { exitCode, stdout } = await run("crash");
    assert.equal(stdout, "RANK_EXITED\n");
    assert.equal(exitCode, 0);
  });

  it("ends by itself after a rank crashed while loading", async () => {
    const { exitCode, stdout } = await run("crash-on-load");
    assert.equal(stdout, "RANK_EXITED\n");
    assert.equal(exitCode, 0);
  });

  it("survives a rank that runs out of memory, and says so", async () => {
    const { exitCode, stdout } = await run("exhaust-in-step", "--max-old-space-size=48");
    assert.match(stdout, /^RANK_EXITED .*rank 1.*out of memory/);
    assert.equal(exitCode, 0);
  });

  it("ends by itself after a rank hung while loading", async () => {
    const { exitCode, stdout } = await run("hang-on-load");
    assert.equal(stdout, "RANK_TIMEOUT\n");
    assert.equal(exitCode, 0);
  });

  it("can be exited in the middle of a step in which ranks hang and wait", async () => {
    const { exitCode } = await run("exit-in-step");
    assert.equal(exitCode, 5);
  });
});
