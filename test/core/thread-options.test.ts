import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { threadOptions } from "../../src/core/thread-options.js";
import { TINY_LLAMA } from "../cli/models.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));

describe("options of threads", () => {
  it("are inherited, whatever they are, where a file runs", () => {
    for (const options of [[], ["--max-old-space-size=48", "--conditions=a"], ["-e", "1"]]) {
      assert.deepEqual(threadOptions(options), {});
    }
  });

  it("are those for modules where the process runs a text, which is in none of them", () => {
    const options = [
      "--expose-gc",
      "--conditions=a",
      "-C",
      "b",
      "--import",
      "./x.mjs",
      "--input-type=module",
      "-e",
      "1",
    ];
    assert.deepEqual(threadOptions(options), { execArgv: ["--conditions=a", "-C", "b", "--import", "./x.mjs"] });
  });

  it("let a text launch a model on two ranks", async () => {
    const text = `
      import { launch } from "shardloom";
      const engine = await launch({ model: ${JSON.stringify(TINY_LLAMA)}, tensorParallelSize: 2 });
      const score = await engine.score([1, 2, 3]);
      await engine.close();
      console.log(score.tokens);`;
    const stdout = await new Promise<string>((resolve, reject) => {
      const options = ["--conditions=@shardloom/modules", "--input-type=module", "-e", text];
      execFile(process.execPath, options, { cwd: root }, (error, out, err) => {
        if (error === null) resolve(out);
        else reject(new Error(err));
      });
    });
    assert.equal(stdout, "3\n");
  });
});
