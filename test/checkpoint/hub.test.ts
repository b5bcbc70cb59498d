import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { join } from "node:path";
import { scanCacheDir } from "@huggingface/hub";
import type { DownloadProgress } from "../../src/checkpoint/hub-snapshot.js";
import { resolveModel } from "../../src/checkpoint/model-dir.js";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import { checkpointError } from "./files.js";
import { FIRST, hubEnvironment, NEEDED, SECOND, tensorsOf, WEIGHTS } from "./hub-environment.js";
import { gitHash, sha256 } from "./hub-stub.js";

describe("a model of the hub", () => {
  const at = hubEnvironment();
  const goOffline = async (): Promise<void> => {
    await at.hub.stop();
    process.env["HF_HUB_OFFLINE"] = "1";
  };

  describe("is downloaded", () => {
    it("into the layout that Hugging Face's own libraries share, and can be loaded from there", async () => {
      const commit = at.hub.revisions.get("main");
      assert.ok(commit);
      const model = await resolveModel("org/tiny");
      assert.deepEqual(model, {
        path: at.inCache("snapshots", commit.sha),
        hub: { path: at.inCache("snapshots", commit.sha), commit: commit.sha, checked: true },
      });
      assert.equal(readFileSync(at.inCache("refs", "main"), "utf8"), commit.sha);
      for (const [name, content] of Object.entries(NEEDED)) {
        const file = join(model.path, name);
        const hash = name.endsWith(".safetensors") ? sha256(Buffer.from(content)) : gitHash(Buffer.from(content));
        assert.equal(readlinkSync(file), join("..", "..", "blobs", hash));
        assert.deepEqual(readFileSync(file), Buffer.from(content));
      }
      assert.deepEqual(await tensorsOf(model), ["a", "b"]);
      assert.equal((await safetensorsLoader.describe(model.path)).chatTemplate, "{{ messages }}");
    });

    it("without its weights where what describes it will do; they come when they are asked for", async () => {
      const { path } = await resolveModel("org/tiny", { weights: false });
      assert.ok(existsSync(join(path, "config.json")));
      assert.equal(existsSync(join(path, FIRST)), false);
      assert.equal(existsSync(at.inCache("refs", "main")), false);
      const whole = await resolveModel("org/tiny");
      assert.equal(whole.path, path);
      assert.deepEqual(await tensorsOf(whole), ["a", "b"]);
      await goOffline();
      assert.equal((await resolveModel("org/tiny", { weights: false })).path, path);
    });

    it("so that Hugging Face's library finds the revision, its branch and all its files in the cache", async () => {
      const { path, hub: snapshot } = await resolveModel("org/tiny");
      const { repos, warnings } = await scanCacheDir();
      assert.deepEqual(warnings, []);
      assert.deepEqual(
        repos.map(({ id }) => id),
        [{ name: "org/tiny", type: "model" }],
      );
      const [revision, ...others] = repos[0]?.revisions ?? [];
      assert.deepEqual(others, []);
      assert.equal(revision?.commitOid, snapshot?.commit);
      assert.deepEqual(revision?.refs, ["main"]);
      const found = revision?.files.map((file): [string, number] => [file.path, file.blob.size]);
      const expected = Object.entries(NEEDED).map(([name, content]) => [join(path, name), Buffer.from(content).length]);
      assert.deepEqual(found?.sort(), expected.sort());
    });

    it("without a word on the console, whose output belongs to the answer", async () => {
      const methods = ["debug", "error", "info", "log", "warn"] as const;
      const originals = methods.map((method) => [method, console[method]] as const);
      const said: unknown[] = [];
      for (const method of methods) console[method] = (...words: unknown[]) => said.push(words);
      try {
        await resolveModel("org/tiny");
      } finally {
        for (const [method, original] of originals) console[method] = original;
      }
      assert.deepEqual(said, []);
    });

    it("only as far as it is needed: no pickles, no second copy of the weights, nothing from subfolders", async () => {
      const { path } = await resolveModel("org/tiny");
      assert.deepEqual([...at.hub.downloaded].sort(), Object.keys(NEEDED).sort());
      assert.deepEqual(readdirSync(path).sort(), Object.keys(NEEDED).sort());
    });

    it("once: the second time only the revision is asked for", async () => {
      const first = await resolveModel("org/tiny");
      at.hub.requests.length = 0;
      assert.deepEqual(await resolveModel("org/tiny"), first);
      assert.deepEqual(
        at.hub.requests.map(({ path }) => path),
        ["/api/models/org/tiny/revision/main"],
      );
    });

    it("again where a file of the snapshot is missing, and only that file", async () => {
      const { path } = await resolveModel("org/tiny");
      rmSync(at.inCache("blobs", sha256(WEIGHTS)));
      rmSync(join(path, FIRST));
      at.hub.requests.length = 0;
      await resolveModel("org/tiny");
      assert.deepEqual(at.hub.downloaded, [FIRST]);
    });

    it("without its weights where only the link to them is missing", async () => {
      const { path } = await resolveModel("org/tiny");
      rmSync(join(path, FIRST));
      at.hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.deepEqual(at.hub.downloaded, []);
      assert.deepEqual(await tensorsOf(model), ["a", "b"]);
    });

    it("at a new commit when the branch has moved, without what both commits have", async () => {
      await resolveModel("org/tiny");
      const next = at.hub.commit({ ...NEEDED, "config.json": '{"model_type":"new"}' });
      at.hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.equal(model.hub?.commit, next.sha);
      assert.deepEqual(at.hub.downloaded, ["config.json"]);
      assert.equal(readFileSync(at.inCache("refs", "main"), "utf8"), next.sha);
    });

    it("at the revision that is asked for, in the id or beside it: a tag, a branch with a slash, a commit", async () => {
      const tag = at.hub.commit({ ...NEEDED, "config.json": '{"tag":1}' }, "v1.0");
      const request = at.hub.commit({ ...NEEDED, "config.json": '{"pr":1}' }, "refs/pr/1");
      const commits = await Promise.all([
        resolveModel("org/tiny@v1.0"),
        resolveModel("org/tiny", { revision: "v1.0" }),
        resolveModel("org/tiny@v1.0", { revision: "v1.0" }),
        resolveModel("org/tiny@refs/pr/1"),
        resolveModel(`org/tiny@${tag.sha}`),
      ]);
      assert.deepEqual(
        commits.map((model) => model.hub?.commit),
        [tag.sha, tag.sha, tag.sha, request.sha, tag.sha],
      );
      assert.equal(readFileSync(at.inCache("refs", "refs", "pr", "1"), "utf8"), request.sha);
      assert.ok(!existsSync(at.inCache("refs", tag.sha)));
    });

    it("by several at once without harm", async () => {
      const models = await Promise.all(Array.from({ length: 4 }, () => resolveModel("org/tiny")));
      for (const model of models) assert.deepEqual(await tensorsOf(model), ["a", "b"]);
      assert.deepEqual(at.incomplete(), []);
    });

    it("with HF_TOKEN on every request, and without any where there is none", async () => {
      await resolveModel("org/tiny");
      assert.ok(at.hub.requests.every(({ authorization }) => authorization === undefined));
      rmSync(at.inCache(), { recursive: true });
      at.hub.requests.length = 0;
      process.env["HF_TOKEN"] = "hf_example";
      await resolveModel("org/tiny");
      assert.ok(at.hub.requests.length > Object.keys(NEEDED).length);
      assert.ok(at.hub.requests.every(({ authorization }) => authorization === "Bearer hf_example"));
    });

    it("into HF_HUB_CACHE where that is set", async () => {
      process.env["HF_HUB_CACHE"] = join(at.home, "elsewhere");
      const { path } = await resolveModel("org/tiny");
      assert.ok(path.startsWith(join(at.home, "elsewhere", "models--org--tiny", "snapshots")));
    });

    it("from an HF_ENDPOINT with a slash at its end as well", async () => {
      process.env["HF_ENDPOINT"] = `${at.hub.endpoint}/`;
      assert.deepEqual(await tensorsOf(await resolveModel("org/tiny")), ["a", "b"]);
    });

    it("with every byte reported as it arrives, none twice, and none from the cache", async () => {
      const progress: DownloadProgress[] = [];
      await resolveModel("org/tiny", { onProgress: (step) => progress.push(step) });
      const last = new Map(progress.map((step) => [step.file, step]));
      for (const [name, content] of Object.entries(NEEDED)) {
        assert.equal(last.get(name)?.fileReceivedBytes, Buffer.from(content).length);
        assert.equal(last.get(name)?.fileBytes, Buffer.from(content).length);
      }
      const weights = [FIRST, SECOND].reduce((sum, name) => sum + (NEEDED[name]?.length ?? 0), 0);
      assert.equal(last.get(SECOND)?.totalBytes, weights);
      assert.equal(last.get(SECOND)?.totalReceivedBytes, weights);
      progress.length = 0;
      await resolveModel("org/tiny", { onProgress: (step) => progress.push(step) });
      assert.deepEqual(progress, []);
    });

    it("with empty files, which have no byte to ask for", async () => {
      at.hub.commit({ ...NEEDED, "merges.txt": "" });
      const { path } = await resolveModel("org/tiny");
      assert.equal(readFileSync(join(path, "merges.txt"), "utf8"), "");
    });

    it("without an index: the model files, not the consolidated ones", async () => {
      at.hub.commit({ "config.json": "{}", "model.safetensors": WEIGHTS, "consolidated.safetensors": WEIGHTS });
      await resolveModel("org/tiny");
      assert.deepEqual(at.hub.downloaded, ["config.json", "model.safetensors"]);
    });
  });

  describe("offline", () => {
    it("is taken from the cache without a single request", async () => {
      const { path, hub: snapshot } = await resolveModel("org/tiny");
      await goOffline();
      assert.deepEqual(await resolveModel("org/tiny"), { path, hub: { ...snapshot, checked: false } });
      assert.deepEqual(await resolveModel(`org/tiny@${snapshot?.commit}`), {
        path,
        hub: { ...snapshot, checked: false },
      });
    });

    it("is an error where the cache has nothing of it, and none was asked for", async () => {
      process.env["HF_HUB_OFFLINE"] = "1";
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("HUB_OFFLINE", /HF_HUB_OFFLINE is set.*nothing of it/),
      );
      await assert.rejects(resolveModel("org/tiny@other"), checkpointError("HUB_OFFLINE"));
      assert.deepEqual(at.hub.requests, []);
    });

    for (const name of [SECOND, "config.json"]) {
      it(`is an error where the cache lacks ${name}`, async () => {
        const { path } = await resolveModel("org/tiny");
        rmSync(join(path, name));
        await goOffline();
        await assert.rejects(
          resolveModel("org/tiny"),
          checkpointError("HUB_OFFLINE", new RegExp(`no ${name} of commit`)),
        );
      });
    }

    it("is an error where a link of the cache leads nowhere", async () => {
      await resolveModel("org/tiny");
      rmSync(at.inCache("blobs", sha256(WEIGHTS)));
      await goOffline();
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_OFFLINE", new RegExp(FIRST)));
    });

    it("is not what HF_HUB_OFFLINE=0 means", async () => {
      process.env["HF_HUB_OFFLINE"] = "0";
      await resolveModel("org/tiny");
      assert.notDeepEqual(at.hub.requests, []);
    });
  });
});
