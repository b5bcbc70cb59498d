import assert from "node:assert/strict";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { CheckpointError, PluginError, RankError } from "../../src/core/errors.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { decodeGreedily, startModelRanks } from "./model-ranks.js";
import { helperThreads, helperThreadsAre, type ThreadCount, watchThreads } from "./threads.js";

const fixtures = fileURLToPath(new URL("../../../test/fixtures/tiny/", import.meta.url));
const llama = join(fixtures, "llama", "bf16");

interface Golden {
  readonly prompts: readonly { readonly promptIds: readonly number[]; readonly generatedIds: readonly number[] }[];
}

function goldenOf(model: string): Golden {
  return JSON.parse(readFileSync(join(fixtures, `${model}.golden.json`), "utf8"));
}

/** Runs a test with an environment variable set; threads inherit it. */
async function withEnvironment(name: string, value: string, run: () => Promise<void>): Promise<void> {
  const before = process.env[name];
  process.env[name] = value;
  try {
    await run();
  } finally {
    if (before === undefined) delete process.env[name];
    else process.env[name] = before;
  }
}

describe("ranks with a model", () => {
  let folder: string;
  let threads: ThreadCount;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "shardloom-ranks-"));
    threads = watchThreads();
  });

  afterEach(() => {
    threads.stop();
    rmSync(folder, { recursive: true, force: true });
    assert.equal(threads.alive, 0, "threads are left behind");
  });

  async function expectGolden(model: string, worldSize: number, threadsPerRank?: number): Promise<void> {
    const coordinator = await startModelRanks(join(fixtures, model), worldSize, { threadsPerRank });
    try {
      for (const { promptIds, generatedIds } of goldenOf(model).prompts) {
        const answer = await decodeGreedily(coordinator, promptIds, generatedIds.length);
        assert.deepEqual(answer, generatedIds, `prompt of ${promptIds.length} tokens`);
      }
    } finally {
      await coordinator.close();
    }
  }

  for (const { model, worldSize } of [
    { model: "llama/bf16", worldSize: 1 },
    { model: "llama/bf16", worldSize: 2 },
    { model: "llama/bf16", worldSize: 4 },
    { model: "llama-uneven/bf16", worldSize: 2 },
    { model: "llama-uneven/bf16", worldSize: 3 },
  ]) {
    it(`answer the tokens that transformers computes: ${model} on ${worldSize} thread(s)`, () =>
      expectGolden(model, worldSize));
  }

  for (const [worldSize, threadsPerRank] of [
    [1, 3],
    [2, 2],
    [4, 3],
  ] as const) {
    it(`answer the same with ${threadsPerRank} threads each on ${worldSize} rank(s), and leave none of them`, async () => {
      const before = helperThreads();
      await expectGolden("llama/bf16", worldSize, threadsPerRank);
      await helperThreadsAre(before);
    });
  }

  it("refuse a number of threads that makes no sense, before any of them starts", async () => {
    await assert.rejects(startModelRanks(llama, 1, { threadsPerRank: 0 }), { code: "INVALID_OPTION" });
    assert.equal(threads.started, 0);
  });

  it("fail where the system has no more threads, naming the rank, and leave none behind", async function () {
    const native = nativeAddon();
    if (!native.loaded) this.skip();
    // Ranks load the addon anew: this one is told no by its system.
    const refusing = join(folder, "addon.cjs");
    writeFileSync(
      refusing,
      `const setThreads = () => { throw new Error("setThreads: the system has no more threads or memory"); };
      module.exports = { ...require(${JSON.stringify(native.path)}), setThreads };`,
    );
    await withEnvironment("SHARDLOOM_NATIVE_ADDON", refusing, () =>
      assert.rejects(startModelRanks(llama, 2, { threadsPerRank: 2 }), (error) => {
        assert.ok(error instanceof RankError, String(error));
        assert.equal(error.code, "THREADS_UNAVAILABLE");
        assert.equal(typeof error.details.rank, "number");
        assert.equal(error.details.expected, 2);
        return true;
      }),
    );
  });

  it("answer the same on the reference kernels, meeting in TypeScript", () =>
    withEnvironment("SHARDLOOM_KERNELS", "reference", () => expectGolden("llama-uneven/bf16", 2)));

  it("report what each of them read, and read a weight that is split only once", async () => {
    const coordinator = await startModelRanks(llama, 2);
    await coordinator.close();
    const [first, second] = coordinator.reports;
    assert.ok(first !== undefined && second !== undefined);
    assert.deepEqual([first.rank, second.rank], [0, 1]);
    const alone = await startModelRanks(llama, 1);
    await alone.close();
    const total = alone.reports[0]?.bytesRead ?? 0;
    assert.ok(first.bytesRead > total / 2 && first.bytesRead < (3 * total) / 4, `${first.bytesRead} of ${total}`);
  });

  it("fail with the error of the checkpoint, naming rank and file", async () => {
    copyFileSync(join(llama, "config.json"), join(folder, "config.json"));
    const file = join(folder, "model.safetensors");
    copyFileSync(join(llama, "model.safetensors"), file);
    truncateSync(file, 100_000);
    await assert.rejects(startModelRanks(folder, 2), (error) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.equal(error.details.file, file);
      assert.equal(typeof error.details.rank, "number");
      return true;
    });
  });

  it("fail with the error of a plugin that one of them cannot load", async () => {
    const plugin = join(folder, "plugin.mjs");
    writeFileSync(
      plugin,
      `export const plugin = { name: "broken", apiVersion: 1, register() { throw new Error("no disk"); } };`,
    );
    await assert.rejects(startModelRanks(llama, 2, { plugins: [pathToFileURL(plugin).href] }), (error) => {
      assert.ok(error instanceof PluginError, String(error));
      assert.equal(error.code, "PLUGIN_FAILED");
      assert.match(error.message, /no disk/);
      return true;
    });
  });

  it("stop together when a plugin throws half way through registering on rank 3 alone, and start anew as if nothing had been", async () => {
    const plugin = join(folder, "plugin.mjs");
    const idle = new Worker("", { eval: true });
    // Ranks are started in order, and threads are numbered as they are started.
    const rank3 = idle.threadId + 4;
    await once(idle, "exit");
    writeFileSync(
      plugin,
      `import { threadId } from "node:worker_threads";
      const loader = { format: "half", matches: () => false, describe() {}, open() {} };
      export const plugin = {
        name: "picky",
        apiVersion: 1,
        register(context) {
          context.registerModelLoader(loader);
          if (threadId === ${rank3}) throw new TypeError("not on this thread");
        },
      };`,
    );
    const plugins = [pathToFileURL(plugin).href];
    await assert.rejects(startModelRanks(llama, 4, { plugins }), (error) => {
      assert.ok(error instanceof PluginError, String(error));
      assert.equal(error.code, "PLUGIN_FAILED");
      assert.match(error.message, /picky.*not on this thread/);
      assert.deepEqual(error.details, { rank: 3, plugin: "picky" });
      return true;
    });
    assert.equal(threads.alive, 0, "a rank went on");
    const coordinator = await startModelRanks(llama, 4, { plugins });
    const [, prompt] = goldenOf("llama/bf16").prompts;
    assert.ok(prompt !== undefined);
    const answer = await decodeGreedily(coordinator, prompt.promptIds, 4);
    await coordinator.close();
    assert.deepEqual(answer, prompt.generatedIds.slice(0, 4));
  });

  it("fail with a typed error when a plugin exits", async () => {
    const plugin = join(folder, "plugin.mjs");
    writeFileSync(plugin, "process.exit(3);");
    await assert.rejects(startModelRanks(llama, 2, { plugins: [pathToFileURL(plugin).href] }), (error) => {
      assert.ok(error instanceof RankError, String(error));
      assert.equal(error.code, "RANK_EXITED");
      assert.equal(error.details["exitCode"], 3);
      return true;
    });
  });
});
