import assert from "node:assert/strict";
import { cli, startCli } from "./cli-process.js";
import { addTokenizer, setConfig, testFolder } from "./models.js";

describe("shardloom chat, with messages from a pipe", () => {
  const folder = testFolder();
  let model = "";
  before(() => {
    model = folder.model("chat", addTokenizer);
  });

  /** What the model continues a text with, in six tokens; the template of the chats is spelled out in it. */
  async function continuation(text: string): Promise<string> {
    const { stdout } = await cli(["generate", "--model", model, "--prompt", text, "--max-tokens", "6"]);
    return stdout.trimEnd();
  }

  async function chat(lines: readonly string[], flags: readonly string[] = []): Promise<string[]> {
    const args = ["chat", "--model", model, "--max-tokens", "6", ...flags];
    const { code, stdout, stderr } = await cli(args, { input: lines.map((line) => `${line}\n`).join("") });
    assert.equal(stderr, "");
    assert.equal(code, 0);
    return stdout.trimEnd().split("\n");
  }

  it("answers each line, and remembers what was said", async () => {
    const first = await continuation("[user]hi[assistant]");
    const second = await continuation(`[user]hi[assistant]${first}[user]and?[assistant]`);
    assert.deepEqual(await chat(["hi", "", "and?"]), [first, second]);
  });

  it("/reset forgets everything but the system message", async () => {
    const first = await continuation("[system]Be kind[user]hi[assistant]");
    assert.deepEqual(await chat(["hi", "/reset", "hi"], ["--system", "Be kind"]), [first, first]);
  });

  it("/exit leaves, whatever follows", async () => {
    assert.equal((await chat(["hi", "/exit", "hi"])).length, 1);
  });

  it("SIGINT stops the answer and keeps the chat", async () => {
    // Long enough that an answer does not end by itself.
    const long = folder.model("long", (directory) => {
      addTokenizer(directory);
      setConfig(directory, { max_position_embeddings: 50_000 });
    });
    const { child, printed, finished } = startCli(["chat", "--model", long]);
    child.stdin.write("hi\n");
    await printed(/./);
    child.kill("SIGINT");
    await printed(/\n/);
    child.stdin.write("go on\n");
    await printed(/\n./);
    child.kill("SIGINT");
    await printed(/\n.+\n/);
    child.stdin.end();
    const { code, stdout, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.equal(stdout.split("\n").length, 3);
  });

  it("SIGINT between answers ends it with exit code 130", async () => {
    const { child, printed, finished } = startCli(["chat", "--model", model, "--max-tokens", "6"]);
    child.stdin.write("hi\n");
    await printed(/\n/);
    child.kill("SIGINT");
    const { code, stderr } = await finished;
    assert.equal(stderr, "");
    assert.equal(code, 130);
  });
});
