import assert from "node:assert/strict";
import { accessSync, constants, existsSync } from "node:fs";
import { Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { defaultPlugins } from "../../src/cli/default-plugins.js";
import { createLoadingBar } from "../../src/cli/loading-bar.js";
import { createLogger } from "../../src/core/logger.js";
import { MAIN } from "./cli-process.js";

const logger = createLogger("silent");

it("the build makes the command executable, as npx needs it in the checkout", () => {
  accessSync(MAIN, constants.X_OK);
});

describe("the plugins that come with the command line", () => {
  it("are those of package.json, as files to import", () => {
    const urls = defaultPlugins(logger);
    assert.equal(urls.length, 2);
    for (const url of urls) assert.ok(existsSync(fileURLToPath(url)), url);
  });

  it("may be missing: one that is not installed is passed over", () => {
    assert.deepEqual(defaultPlugins(logger, ["@shardloom/not-installed"]), []);
  });
});

/** A terminal as far as a progress bar needs one. */
function terminalOf({ rows = 24 } = {}): NodeJS.WriteStream & { readonly text: string } {
  let text = "";
  const stream = new Writable({
    write(chunk, _encoding, done) {
      text += String(chunk);
      done();
    },
  });
  return Object.create(process.stderr, {
    isTTY: { value: true },
    columns: { value: 120 },
    rows: { value: rows },
    write: { value: (chunk: string) => stream.write(chunk) },
    text: { get: () => text },
  });
}

describe("the bar that shows how loading goes", () => {
  it("is for terminals only", () => {
    assert.equal(createLoadingBar(Object.create(process.stderr, { isTTY: { value: false } })), null);
  });

  for (const [second, shown] of [
    [30_000_000, "50%  50 MB of 100 MB"],
    // Both have read what they hold copies of.
    [90_000_000, "100%  100 MB of 100 MB"],
  ] as const) {
    it(`adds up what all ranks have read, and never passes the end: ${shown}`, () => {
      const terminal = terminalOf();
      const bar = createLoadingBar(terminal);
      assert.ok(bar !== null);
      bar.loaded({ rank: 0, bytesRead: 10_000_000, totalBytes: 100_000_000 });
      bar.loaded({ rank: 1, bytesRead: second, totalBytes: 100_000_000 });
      bar.loaded({ rank: 0, bytesRead: 20_000_000, totalBytes: 100_000_000 });
      bar.stop();
      assert.ok(terminal.text.includes(shown), terminal.text);
    });
  }

  it("has a line for each rank, with its part of the bytes until it reads more", () => {
    const terminal = terminalOf();
    const bar = createLoadingBar(terminal, 2);
    assert.ok(bar !== null);
    bar.loaded({ rank: 0, bytesRead: 10_000_000, totalBytes: 100_000_000 });
    bar.loaded({ rank: 1, bytesRead: 60_000_000, totalBytes: 100_000_000 });
    bar.loaded({ rank: 2, bytesRead: 1, totalBytes: 100_000_000 });
    bar.stop();
    assert.match(terminal.text, /rank 0 {2}\S+ {2}20% {2}10 MB of 50 MB/);
    assert.match(terminal.text, /rank 1 {2}\S+ {2}100% {2}60 MB of 60 MB/);
    assert.ok(!terminal.text.includes("rank 2"));
  });

  it("has one line for all ranks where the terminal has no room for more", () => {
    const terminal = terminalOf({ rows: 5 });
    const bar = createLoadingBar(terminal, 4);
    assert.ok(bar !== null);
    for (let rank = 0; rank < 4; rank++) bar.loaded({ rank, bytesRead: 10_000_000, totalBytes: 100_000_000 });
    bar.stop();
    assert.match(terminal.text, /Loading .* 40% {2}40 MB of 100 MB/);
    assert.ok(!terminal.text.includes("rank"));
  });

  it("shows how far quantizing has got", () => {
    const terminal = terminalOf();
    const bar = createLoadingBar(terminal);
    assert.ok(bar !== null);
    bar.quantized({ bytesDone: 3_000_000, totalBytes: 4_000_000 });
    bar.stop();
    assert.match(terminal.text, /Quantizing .* 75% {2}3 MB of 4 MB/);
  });

  it("shows a download before", () => {
    const terminal = terminalOf();
    const bar = createLoadingBar(terminal);
    assert.ok(bar !== null);
    const file = { file: "model.safetensors", fileBytes: 10, fileReceivedBytes: 5 };
    bar.downloaded({ ...file, totalBytes: 4000, totalReceivedBytes: 1000 });
    bar.stop();
    assert.match(terminal.text, /Downloading .* 25% {2}1 kB of 4 kB/);
  });
});
