import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const scripts = fileURLToPath(new URL("../../../scripts", import.meta.url));

/** A command line that says what it was given, and ends as its --end tells it. */
const CLI = `
console.log(JSON.stringify(process.argv.slice(2)));
const end = process.argv[process.argv.indexOf("--end") + 1];
if (end === "signal") {
  process.on("SIGTERM", () => process.exit(44));
  setInterval(() => {}, 1000);
  console.log("ready");
} else process.exit(Number(end) || 0);
`;

describe("npm start", () => {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-start-"));
  before(() => {
    cpSync(scripts, join(folder, "scripts"), { recursive: true });
    writeFileSync(join(folder, "package.json"), '{"type":"module","scripts":{"build":"node -e 0"}}');
    mkdirSync(join(folder, "bundle", "src", "lib"), { recursive: true });
    writeFileSync(join(folder, "bundle", "src", "lib", "main.js"), CLI);
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  function start(args: readonly string[], onReady?: (kill: () => void) => void) {
    const child = spawn(process.execPath, [join(folder, "scripts", "start.mjs"), ...args], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    let output = "";
    child.stdout.setEncoding("utf8");
    child.stdout.on("data", (text: string) => {
      output += text;
      if (output.includes("ready\n")) onReady?.(() => child.kill("SIGTERM"));
    });
    return new Promise<{ code: number | null; lines: string[] }>((resolve) => {
      child.on("close", (code) => resolve({ code, lines: output.trim().split("\n") }));
    });
  }

  it("asks a question on two ranks where the caller asks nothing", async () => {
    const { code, lines } = await start(["--model", "m"]);
    const received: string[] = JSON.parse(lines[0] ?? "");
    assert.equal(code, 0);
    assert.equal(received[0], "generate");
    for (const option of ["--chat", "--tp", "--max-tokens"]) assert.ok(received.includes(option), option);
    assert.equal(received[received.indexOf("--tp") + 1], "2");
    assert.equal(received.filter((arg) => arg === "--model").length, 1);
  });

  it("lets the caller's arguments take the place of its own", async () => {
    const { lines } = await start(["--model=m", "--prompt", "Once", "--tp=3", "--max-tokens", "5"]);
    assert.deepEqual(JSON.parse(lines[0] ?? ""), [
      "generate",
      "--model=m",
      "--prompt",
      "Once",
      "--tp=3",
      "--max-tokens",
      "5",
    ]);
  });

  it("fetches nothing to show the help", async () => {
    const { lines } = await start(["--help"]);
    assert.deepEqual(JSON.parse(lines[0] ?? ""), ["generate", "--help"]);
  });

  it("ends with the exit code of the command", async () => {
    assert.equal((await start(["--model", "m", "--end", "5"])).code, 5);
  });

  it("passes a signal on, and ends when the command has dealt with it", async function () {
    if (process.platform === "win32") return this.skip();
    assert.equal((await start(["--model", "m", "--end", "signal"], (kill) => kill())).code, 44);
  });
});
