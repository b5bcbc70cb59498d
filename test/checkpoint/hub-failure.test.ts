import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import type { ServerResponse } from "node:http";
import type { DownloadProgress } from "../../src/checkpoint/hub-snapshot.js";
import { resolveModel } from "../../src/checkpoint/model-dir.js";
import { OptionError, RequestError } from "../../src/core/errors.js";
import { checkpointError } from "./files.js";
import { FIRST, hubEnvironment, NEEDED, SECOND, tensorsOf, WEIGHTS } from "./hub-environment.js";
import { gitHash, sendFile, sendJson, sha256 } from "./hub-stub.js";

describe("a model of a hub", () => {
  const at = hubEnvironment();

  describe("that is out of reach", () => {
    it("is taken from the cache if it is all there, and says that it was not checked", async () => {
      const { path, hub: snapshot } = await resolveModel("org/tiny");
      at.hub.intercept = (_path, _request, response) => answer(response, 503);
      assert.deepEqual(await resolveModel("org/tiny"), { path, hub: { ...snapshot, checked: false } });
      await at.hub.stop();
      assert.deepEqual(await resolveModel("org/tiny"), { path, hub: { ...snapshot, checked: false } });
    });

    it("is an error without the cache, naming the hub and the reason", async () => {
      const { endpoint } = at.hub;
      await at.hub.stop();
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("HUB_UNREACHABLE", new RegExp(endpoint), /ECONNREFUSED/),
      );
    });

    it("is an error with its status where the hub is down", async () => {
      at.hub.intercept = (_path, _request, response) => answer(response, 503);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /503/));
    });

    it("is not an old commit when the hub fails after it named a new one", async () => {
      await resolveModel("org/tiny");
      at.hub.commit({ ...NEEDED, "config.json": '{"model_type":"new"}' });
      at.hub.intercept = (path, _request, response) => path.includes("/resolve/") && answer(response, 500);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /500/));
    });
  });

  describe("that does not give it", () => {
    it("is HUB_NOT_FOUND, and the message says that there is no such path either", async () => {
      await assert.rejects(
        resolveModel("org/none"),
        checkpointError("HUB_NOT_FOUND", /org\/none@main \(no local path\).*404/),
      );
      await assert.rejects(resolveModel("org/tiny@none"), checkpointError("HUB_NOT_FOUND", /org\/tiny@none/));
    });

    it("is HUB_UNAUTHORIZED with the advice to set HF_TOKEN", async () => {
      at.hub.intercept = (_path, _request, response) => answer(response, 401);
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_UNAUTHORIZED", /401/, /set HF_TOKEN/));
    });

    it("is HUB_UNAUTHORIZED when a gated repository lists its files and refuses them", async () => {
      at.hub.intercept = (path, _request, response) => path.includes("/resolve/") && answer(response, 403);
      process.env["HF_TOKEN"] = "hf_example";
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("HUB_UNAUTHORIZED", /403/, /HF_TOKEN is set, but/),
      );
      assert.ok(!existsSync(at.inCache("refs")));
    });

    it("is NO_SAFETENSORS when it has only pickled weights, and those are not downloaded", async () => {
      at.hub.commit({ "config.json": "{}", "pytorch_model.bin": "pickle" });
      await assert.rejects(
        resolveModel("org/tiny"),
        checkpointError("NO_SAFETENSORS", /org\/tiny@main.*pytorch_model\.bin/),
      );
      assert.deepEqual(at.hub.downloaded, ["config.json"]);
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
      at.hub.intercept = (path, request, response) => {
        if (!path.endsWith(SECOND) || request.headers.range !== undefined) return false;
        const { length } = Buffer.from(NEEDED[SECOND] ?? "");
        response.writeHead(200, { "content-length": String(length) }).write("half of it", () => response.destroy());
        return true;
      };
      await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_UNREACHABLE", /org\/tiny/));
      assert.deepEqual(at.incomplete(), []);
      assert.ok(!existsSync(at.inCache("refs", "main")));
      at.hub.intercept = () => false;
      at.hub.requests.length = 0;
      const model = await resolveModel("org/tiny");
      assert.deepEqual(at.hub.downloaded, [SECOND]);
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
          at.hub.intercept = (path, request, response) => {
            if (!path.endsWith(`/${name}`)) return false;
            sendFile(request, response, { content: change(original), lfs: false });
            return true;
          };
          await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_CONTENT_MISMATCH", new RegExp(name)));
          assert.deepEqual(at.incomplete(), []);
          assert.ok(
            !existsSync(at.inCache("blobs", gitHash(original))) && !existsSync(at.inCache("blobs", sha256(original))),
          );
        });
      }
    }

    it("with file names that lead elsewhere has none of them written", async () => {
      at.hub.commit({ ...NEEDED, "../../../evil.json": "{}", "/evil.json": "{}", "a/../../evil.safetensors": WEIGHTS });
      const { path } = await resolveModel("org/tiny");
      assert.deepEqual(readdirSync(path).sort(), Object.keys(NEEDED).sort());
      const all = readdirSync(at.home, { recursive: true, encoding: "utf8" });
      assert.deepEqual(
        all.filter((name) => name.includes("evil")),
        [],
      );
    });

    it("with an index that leads elsewhere is refused", async () => {
      at.hub.commit({ ...NEEDED, "model.safetensors.index.json": '{"weight_map":{"a":"../../evil.safetensors"}}' });
      await assert.rejects(resolveModel("org/tiny"), checkpointError("UNSAFE_FILE_NAME"));
    });

    it("with an index that names a file it does not have is refused", async () => {
      at.hub.commit({ ...NEEDED, "model.safetensors.index.json": '{"weight_map":{"a":"none.safetensors"}}' });
      await assert.rejects(resolveModel("org/tiny"), checkpointError("MISSING_WEIGHT_FILE", /none\.safetensors/));
    });

    for (const sha of ["../../../evil", "main", undefined, 7]) {
      it(`with ${JSON.stringify(sha)} for a commit is refused`, async () => {
        at.hub.intercept = (_path, _request, response) => {
          sendJson(response, 200, { id: "org/tiny", sha, siblings: [{ rfilename: "config.json" }] });
          return true;
        };
        await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /names no commit/));
      });
    }

    for (const oid of ["../../../evil", "", "0123", undefined]) {
      it(`with ${JSON.stringify(oid)} for a hash is refused`, async () => {
        at.hub.intercept = (path, _request, response) => {
          if (!path.includes("/tree/")) return false;
          sendJson(response, 200, [{ type: "file", path: "config.json", size: 2, oid }]);
          return true;
        };
        await assert.rejects(resolveModel("org/tiny"), checkpointError("HUB_ERROR", /without a size and a hash/));
      });
    }

    it("with an answer that is not JSON is refused", async () => {
      at.hub.intercept = (_path, _request, response) => {
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
      at.hub.intercept = (path, request, response) => {
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
      assert.deepEqual(at.incomplete(), []);
    });

    it("before it began makes no request", async () => {
      await assert.rejects(resolveModel("org/tiny", { signal: AbortSignal.abort() }), isCancelled);
      assert.deepEqual(at.hub.requests, []);
    });
  });

  it("that cannot be written says which file of the cache, and why", async () => {
    process.env["HF_HUB_CACHE"] = at.write("a-file", "");
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
