import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { join } from "node:path";
import { scanCacheDir } from "@huggingface/hub";
import type { DownloadProgress } from "../../src/checkpoint/hub-snapshot.js";
import { type ResolvedModel, resolveModel } from "../../src/checkpoint/model-dir.js";
import { OptionError, RequestError } from "../../src/core/errors.js";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import { checkpointError, temporaryFolder, vectorsBytes } from "./files.js";
import { gitHash, HubStub, sendFile, sendJson, sha256 } from "./hub-stub.js";

const FIRST = "model-00001-of-00002.safetensors";
const SECOND = "model-00002-of-00002.safetensors";
const INDEX = JSON.stringify({ weight_map: { a: FIRST, b: SECOND } });
const WEIGHTS = vectorsBytes({ a: [1, 2, 3] });

/** What is needed of the repository that most tests serve. */
const NEEDED: Readonly<Record<string, string | Uint8Array>> = {
  "config.json": '{"model_type":"llama"}',
  "generation_config.json": "{}",
  "tokenizer.json": '{"model":{}}',
  "tokenizer_config.json": '{"bos_token":"<s>"}',
  "chat_template.jinja": "{{ messages }}",
  "model.safetensors.index.json": INDEX,
  [FIRST]: WEIGHTS,
  [SECOND]: vectorsBytes({ b: [4] }),
};

/** What it has besides. */
const SURPLUS: Readonly<Record<string, string | Uint8Array>> = {
  ".gitattributes": "* text",
  "README.md": "# tiny",
  "pytorch_model.bin": "pickle",
  "pytorch_model.bin.index.json": "{}",
  "consolidated.safetensors": vectorsBytes({ other: [9] }),
  "onnx/config.json": "{}",
  "original/model.safetensors": vectorsBytes({ other: [9] }),
};

const VARIABLES = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"];

describe("a model of the hub", () => {
  const folder = temporaryFolder();
  const saved = new Map<string, string | undefined>();
  let hub: HubStub;

  beforeEach(async () => {
    for (const name of VARIABLES) {
      saved.set(name, process.env[name]);
      delete process.env[name];
    }
    hub = await HubStub.start();
    process.env["HF_ENDPOINT"] = hub.endpoint;
    process.env["HF_HOME"] = folder.path;
    hub.commit({ ...NEEDED, ...SURPLUS });
  });

  afterEach(async () => {
    await hub.stop();
    for (const [name, value] of saved) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });

  const inCache = (...path: readonly string[]): string => join(folder.path, "hub", "models--org--tiny", ...path);
  const incomplete = (): string[] =>
    readdirSync(folder.path, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".incomplete"));
  const tensorsOf = async ({ path }: ResolvedModel): Promise<string[]> => {
    const checkpoint = await safetensorsLoader.open(path);
    checkpoint.close();
    return [...checkpoint.tensors.keys()];
  };
  const goOffline = async (): Promise<void> => {
    await hub.stop();
    process.env["HF_HUB_OFFLINE"] = "1";
  };

  describe("is downloaded", () => {
    it("into the layout that Hugging Face's own libraries share, and can be loaded from there", async () => {
      const commit = hub.revisions.get("main");
      assert.ok(commit);
      const model = await resolveModel("org/tiny");
      assert.deepEqual(model, {
        path: inCache("snapshots", commit.sha),
        hub: { path: inCache("snapshots", commit.sha), commit: commit.sha, checked: true },
      });
      assert.equal(readFileSync(inCache("refs", "main"), "utf8"), commit.sha);
      for (const [name, content] of Object.entries(NEEDED)) {
        const file = join(model.path, name);
        const hash = name.endsWith(".safetensors") ? sha256(Buffer.from(content)) : gitHash(Buffer.from(content));
        assert.equal(readlinkSync(file), join("..", "..", "blobs", hash));
        assert.deepEqual(readFileSync(file), Buffer.from(content));
      }
      assert.deepEqual(await tensorsOf(model), ["a", "b"]);
      assert.equal((await safetensorsLoader.describe(model.path)).chatTemplate, "{{ messages }}");
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
      assert.deepEqual([...hub.downloaded].sort(), Object.keys(NEEDED).sort());
      assert.deepEqual(readdirSync(path).sort(), Object.keys(NEEDED).sort());
    });

    it("once: the second time only the revision is asked for", async () => {
      const first = await resolveModel("org/tiny");
      hub.requests.length = 0;
      assert.deepEqual(await resolveModel("org/tiny"), first);
      assert.deepEqual(
        hub.requests.map(({ path }) => path),
        ["/api/models/org/tiny/revision/main"],
      );
    });

    it("again where a file of the snapshot is missing, and only that file", async () => {
      const { path } = await resolveModel("org/tiny");
      rmSync(inCache("blobs", sha256(WEIGHTS)));
      rmSync(join(path, FIRST));
      hub.requests.length = 0;
      await resolveModel("org/tiny");
      assert.deepEqual(hub.downloaded, [FIRST]);
    });

    it("without its weights where only the link to them is missing", async () => {
      const { path } = await resolveModel("org/tiny");
      rmSync(join(path, FIRST));
      hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.deepEqual(hub.downloaded, []);
      assert.deepEqual(await tensorsOf(model), ["a", "b"]);
    });

    it("at a new commit when the branch has moved, without what both commits have", async () => {
      await resolveModel("org/tiny");
      const next = hub.commit({ ...NEEDED, "config.json": '{"model_type":"new"}' });
      hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.equal(model.hub?.commit, next.sha);
      assert.deepEqual(hub.downloaded, ["config.json"]);
      assert.equal(readFileSync(inCache("refs", "main"), "utf8"), next.sha);
    });

    it("at the revision that is asked for, in the id or beside it: a tag, a branch with a slash, a commit", async () => {
      const tag = hub.commit({ ...NEEDED, "config.json": '{"tag":1}' }, "v1.0");
      const request = hub.commit({ ...NEEDED, "config.json": '{"pr":1}' }, "refs/pr/1");
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
      assert.equal(readFileSync(inCache("refs", "refs", "pr", "1"), "utf8"), request.sha);
      assert.ok(!existsSync(inCache("refs", tag.sha)));
    });

    it("by several at once without harm", async () => {
      const models = await Promise.all(Array.from({ length: 4 }, () => resolveModel("org/tiny")));
      for (const model of models) assert.deepEqual(await tensorsOf(model), ["a", "b"]);
      assert.deepEqual(incomplete(), []);
    });

    it("with HF_TOKEN on every request, and without any where there is none", async () => {
      await resolveModel("org/tiny");
      assert.ok(hub.requests.every(({ authorization }) => authorization === undefined));
      rmSync(inCache(), { recursive: true });
      hub.requests.length = 0;
      process.env["HF_TOKEN"] = "hf_example";
      await resolveModel("org/tiny");
      assert.ok(hub.requests.length > Object.keys(NEEDED).length);
      assert.ok(hub.requests.every(({ authorization }) => authorization === "Bearer hf_example"));
    });

    it("into HF_HUB_CACHE where that is set", async () => {
      process.env["HF_HUB_CACHE"] = join(folder.path, "elsewhere");
      const { path } = await resolveModel("org/tiny");
      assert.ok(path.startsWith(join(folder.path, "elsewhere", "models--org--tiny", "snapshots")));
    });

    it("from an HF_ENDPOINT with a slash at its end as well", async () => {
      process.env["HF_ENDPOINT"] = `${hub.endpoint}/`;
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
      hub.commit({ ...NEEDED, "merges.txt": "" });
      const { path } = await resolveModel("org/tiny");
      assert.equal(readFileSync(join(path, "merges.txt"), "utf8"), "");
    });

    it("without an index: the model files, not the consolidated ones", async () => {
      hub.commit({ "config.json": "{}", "model.safetensors": WEIGHTS, "consolidated.safetensors": WEIGHTS });
      await resolveModel("org/tiny");
      assert.deepEqual(hub.downloaded, ["config.json", "model.safetensors"]);
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
      assert.deepEqual(hub.requests, []);
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
      rmSync(inCache("blobs", sha256(WEIGHTS)));
      await goOffline();
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_OFFLINE", new RegExp(FIRST)));
    });

    it("is not what HF_HUB_OFFLINE=0 means", async () => {
      process.env["HF_HUB_OFFLINE"] = "0";
      await resolveModel("org/tiny");
      assert.notDeepEqual(hub.requests, []);
    });
  });

  describe("of a hub that is out of reach", () => {
    it("is taken from the cache if it is all there, and says that it was not checked", async () => {
      const { path, hub: snapshot } = await resolveModel("org/tiny");
      hub.intercept = (_path, _request, response) => answer(response, 503);
      assert.deepEqual(await resolveModel("org/tiny"), { path, hub: { ...snapshot, checked: false } });
      await hub.stop();
      assert.deepEqual(await resolveModel("org/tiny"), { path, hub: { ...snapshot, checked: false } });
    });

    it("is an error without the cache, naming the hub and the reason", async () => {
      const { endpoint } = hub;
      await hub.stop();
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("HUB_UNREACHABLE", new RegExp(endpoint), /ECONNREFUSED/),
      );
    });

    it("is an error with its status where the hub is down", async () => {
      hub.intercept = (_path, _request, response) => answer(response, 503);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /503/));
    });

    it("is not an old commit when the hub fails after it named a new one", async () => {
      await resolveModel("org/tiny");
      hub.commit({ ...NEEDED, "config.json": '{"model_type":"new"}' });
      hub.intercept = (path, _request, response) => path.includes("/resolve/") && answer(response, 500);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /500/));
    });
  });

  describe("that cannot be had", () => {
    it("is HUB_NOT_FOUND, and the message says that there is no such path either", async () => {
      await assert.rejects(
        resolveModel("org/none"),
        checkpointError("HUB_NOT_FOUND", /org\/none@main \(no local path\).*404/),
      );
      await assert.rejects(resolveModel("org/tiny@none"), checkpointError("HUB_NOT_FOUND", /org\/tiny@none/));
    });

    it("is HUB_UNAUTHORIZED with the advice to set HF_TOKEN", async () => {
      hub.intercept = (_path, _request, response) => answer(response, 401);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_UNAUTHORIZED", /401/, /set HF_TOKEN/));
    });

    it("is HUB_UNAUTHORIZED when a gated repository lists its files and refuses them", async () => {
      hub.intercept = (path, _request, response) => path.includes("/resolve/") && answer(response, 403);
      process.env["HF_TOKEN"] = "hf_example";
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("HUB_UNAUTHORIZED", /403/, /HF_TOKEN is set, but/),
      );
      assert.ok(!existsSync(inCache("refs")));
    });

    it("is NO_SAFETENSORS when it has only pickled weights, and those are not downloaded", async () => {
      hub.commit({ "config.json": "{}", "pytorch_model.bin": "pickle" });
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("NO_SAFETENSORS", /org\/tiny@main.*pytorch_model\.bin/),
      );
      assert.deepEqual(hub.downloaded, ["config.json"]);
    });

    it("is an error of HF_TOKEN or HF_ENDPOINT where those are wrong, which does not repeat the token", async () => {
      process.env["HF_TOKEN"] = "secret";
      await assert.rejects(resolveModel("org/tiny"), (error) => {
        assert.ok(error instanceof OptionError && error.code === "INVALID_HUB_TOKEN");
        assert.doesNotMatch(error.message + JSON.stringify(error.details), /secret/);
        return true;
      });
      delete process.env["HF_TOKEN"];
      for (const endpoint of ["huggingface.co", "ftp://huggingface.co", "file:///tmp"]) {
        process.env["HF_ENDPOINT"] = endpoint;
        await assert.rejects(resolveModel("org/tiny"), (error) => {
          return error instanceof OptionError && error.code === "INVALID_HUB_ENDPOINT";
        });
      }
    });
  });

  describe("that breaks off or lies", () => {
    it("leaves nothing half written, and the next attempt goes on with the file that failed", async () => {
      hub.intercept = (path, request, response) => {
        if (!path.endsWith(SECOND) || request.headers.range !== undefined) return false;
        const { length } = Buffer.from(NEEDED[SECOND] ?? "");
        response.writeHead(200, { "content-length": String(length) }).write("half of it", () => response.destroy());
        return true;
      };
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_UNREACHABLE", /org\/tiny/));
      assert.deepEqual(incomplete(), []);
      assert.ok(!existsSync(inCache("refs", "main")));
      hub.intercept = () => false;
      hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.deepEqual(hub.downloaded, [SECOND]);
      assert.deepEqual(await tensorsOf(model), ["a", "b"]);
    });

    const lies: readonly (readonly [string, (content: Uint8Array) => Uint8Array])[] = [
      ["shorter", (content) => content.subarray(0, content.length - 1)],
      ["longer", (content) => Buffer.concat([content, Buffer.from("x")])],
      ["different", (content) => content.map((byte, i) => (i === content.length - 1 ? byte ^ 1 : byte))],
    ];
    for (const [what, change] of lies) {
      for (const name of ["config.json", FIRST]) {
        it(`with a ${what} ${name} than it lists is refused, and the file is not kept`, async () => {
          const original = Buffer.from(NEEDED[name] ?? "");
          hub.intercept = (path, request, response) => {
            if (!path.endsWith(`/${name}`)) return false;
            sendFile(request, response, { content: change(original), lfs: false });
            return true;
          };
          await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_CONTENT_MISMATCH", new RegExp(name)));
          assert.deepEqual(incomplete(), []);
          assert.ok(
            !existsSync(inCache("blobs", gitHash(original))) && !existsSync(inCache("blobs", sha256(original))),
          );
        });
      }
    }

    it("with file names that lead elsewhere has none of them written", async () => {
      hub.commit({ ...NEEDED, "../../../evil.json": "{}", "/evil.json": "{}", "a/../../evil.safetensors": WEIGHTS });
      const { path } = await resolveModel("org/tiny");
      assert.deepEqual(readdirSync(path).sort(), Object.keys(NEEDED).sort());
      const all = readdirSync(folder.path, { recursive: true, encoding: "utf8" });
      assert.deepEqual(
        all.filter((name) => name.includes("evil")),
        [],
      );
    });

    it("with an index that leads elsewhere is refused", async () => {
      hub.commit({ ...NEEDED, "model.safetensors.index.json": '{"weight_map":{"a":"../../evil.safetensors"}}' });
      await assert.rejects(resolveModel("org/tiny"), checkpointError("UNSAFE_FILE_NAME"));
    });

    it("with an index that names a file it does not have is refused", async () => {
      hub.commit({ ...NEEDED, "model.safetensors.index.json": '{"weight_map":{"a":"none.safetensors"}}' });
      await assert.rejects(resolveModel("org/tiny"), checkpointError("MISSING_WEIGHT_FILE", /none\.safetensors/));
    });

    for (const sha of ["../../../evil", "main", undefined, 7]) {
      it(`with ${JSON.stringify(sha)} for a commit is refused`, async () => {
        hub.intercept = (_path, _request, response) => {
          sendJson(response, 200, { id: "org/tiny", sha, siblings: [{ rfilename: "config.json" }] });
          return true;
        };
        await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /names no commit/));
      });
    }

    for (const oid of ["../../../evil", "", "0123", undefined]) {
      it(`with ${JSON.stringify(oid)} for a hash is refused`, async () => {
        hub.intercept = (path, _request, response) => {
          if (!path.includes("/tree/")) return false;
          sendJson(response, 200, [{ type: "file", path: "config.json", size: 2, oid }]);
          return true;
        };
        await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /without a size and a hash/));
      });
    }

    it("with an answer that is not JSON is refused", async () => {
      hub.intercept = (_path, _request, response) => {
        response.end("<html>welcome to the hotel's network</html>");
        return true;
      };
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR"));
    });
  });

  describe("whose download is cancelled", () => {
    it("in the middle of a file leaves nothing half written", async () => {
      const controller = new AbortController();
      const open: ServerResponse[] = [];
      hub.intercept = (path, request, response) => {
        if (!path.endsWith(FIRST) || request.headers.range !== undefined) return false;
        response.writeHead(200, { "content-length": String(WEIGHTS.length) }).write(WEIGHTS.subarray(0, 4));
        open.push(response);
        return true;
      };
      const onProgress = ({ file }: DownloadProgress): void => {
        if (file === FIRST) controller.abort();
      };
      await assert.rejects(resolveModel("org/tiny", { onProgress, signal: controller.signal }), isCancelled);
      assert.equal(open.length, 1);
      assert.deepEqual(incomplete(), []);
    });

    it("before it began makes no request", async () => {
      await assert.rejects(resolveModel("org/tiny", { signal: AbortSignal.abort() }), isCancelled);
      assert.deepEqual(hub.requests, []);
    });
  });

  it("that cannot be written says which file of the cache, and why", async () => {
    process.env["HF_HUB_CACHE"] = folder.write("a-file", "");
    await assert.rejects(resolveModel("org/tiny"), checkpointError("CACHE_WRITE_FAILED", /a-file/));
  });
});

function answer(response: ServerResponse, status: number): true {
  sendJson(response, status, { error: `status ${status}` });
  return true;
}

function isCancelled(error: unknown): true {
  assert.ok(error instanceof RequestError, String(error));
  assert.equal(error.code, "CANCELLED");
  return true;
}
