import assert from "node:assert/strict";
import { cli, startCli } from "./cli-process.js";
import { setConfig, testFolder } from "./models.js";

const UNTIL_SIGTERM = `
  const timer = setInterval(() => {}, 60_000);
  await new Promise((resolve) => process.once("SIGTERM", resolve));
  clearInterval(timer);`;

/** A plugin whose model loader says that it has begun, does `wait`, and describes the model as it is. */
function loaderPlugin(wait: string): string {
  return `
import { readFileSync } from "node:fs";
export const plugin = {
  name: "waiting",
  apiVersion: 1,
  register({ registerModelLoader }) {
    registerModelLoader({
      format: "test",
      matches: () => false,
      async describe(path) {
        process.stdout.write("describing");
        ${wait}
        const config = JSON.parse(readFileSync(path + "/config.json", "utf8"));
        return { config, generationConfig: null, tokenizer: null, chatTemplate: null };
      },
      open: () => { throw new Error("not reached"); },
    });
  },
};`;
}

describe("a command that is interrupted", () => {
  const folder = testFolder();
  let args: string[] = [];
  before(() => {
    // Long enough that an answer does not end by itself.
    const model = folder.model("long", (directory) => setConfig(directory, { max_position_embeddings: 50_000 }));
    args = ["generate", "--model", model, "--prompt-ids", "433"];
  });

  for (const [signal, exitCode] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    it(`${signal} during an answer closes everything, says nothing and ends with exit code ${exitCode}`, async () => {
      const { child, printed, finished } = startCli([...args, "--tp", "2"]);
      await printed(/38 460/);
      child.kill(signal);
      const { code, stdout, stderr } = await finished;
      assert.equal(stderr, "");
      assert.equal(code, exitCode);
      assert.match(stdout, /^38 460( \d+)*\n$/);
    });
  }

  it("a signal while the model loads ends it with that signal's exit code, before a rank loads", async () => {
    const plugin = folder.write("slow.mjs", loaderPlugin(UNTIL_SIGTERM));
    const { child, printed, finished } = startCli([...args, "--plugin", plugin, "--load-format", "test"]);
    await printed(/describing/);
    child.kill("SIGTERM");
    const { code, stdout, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 143);
    assert.equal(stdout, "describing");
  });

  it("a second signal ends it at once when it cannot come to an end", async () => {
    const plugin = folder.write(
      "hanging.mjs",
      loaderPlugin("setInterval(() => {}, 60_000); await new Promise(() => {});"),
    );
    const { child, printed, finished } = startCli([...args, "--plugin", plugin, "--load-format", "test"]);
    await printed(/describing/);
    child.kill("SIGINT");
    child.kill("SIGTERM");
    const { code, stderr } = await finished;
    assert.equal(stderr, "");
    assert.ok(code === 130 || code === 143, String(code));
  });

  it("ends quietly, with exit code 0, when the reader of its output has gone", async () => {
    const { child, printed, finished } = startCli([...args, "--tp", "2"]);
    await printed(/38 460/);
    child.stdout.destroy();
    const { code, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 0);
  });

  it("does not mind that the reader of help has gone", async () => {
    const { child, finished } = startCli(["--help"]);
    child.stdout.destroy();
    const { code, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.match((await cli(["--help"])).stdout, /Usage: shardloom/);
  });
});
