import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { relative } from "node:path";
import { resolveModel } from "../../src/checkpoint/model-dir.js";
import { OptionError } from "../../src/core/errors.js";
import { checkpointError, temporaryFolder } from "./files.js";

/** For assert.rejects: an OptionError of this code. */
function optionError(code: string, ...patterns: readonly RegExp[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof OptionError, String(error));
    assert.equal(error.code, code);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  };
}

describe("a model on this machine", () => {
  const folder = temporaryFolder();

  it("is a directory or a file, by a relative or an absolute path", async () => {
    const file = folder.write("model.any", "");
    assert.deepEqual(await resolveModel(folder.path), { path: folder.path, hub: null });
    assert.deepEqual(await resolveModel(file), { path: file, hub: null });
    assert.deepEqual(await resolveModel(relative(process.cwd(), file)), { path: file, hub: null });
  });

  it("wins over a hub repository of the same name", async () => {
    const directory = process.cwd();
    mkdirSync(`${folder.path}/org/name`, { recursive: true });
    process.chdir(folder.path);
    try {
      assert.deepEqual(await resolveModel("org/name"), { path: `${process.cwd()}/org/name`, hub: null });
    } finally {
      process.chdir(directory);
    }
  });

  it("has no revision", async () => {
    await assert.rejects(
      resolveModel(folder.path, { revision: "main" }),
      optionError("INVALID_REVISION", /local path/),
    );
  });

  it("is not found where nothing was named, and the error names no folder in its place", async () => {
    await assert.rejects(resolveModel(""), checkpointError("MODEL_NOT_FOUND", /but received ""$/));
  });

  const impossible: readonly string[] = [
    "model",
    "./org/name",
    "/org/name",
    "org/name/file.any",
    "org/",
    "/name",
    "../name",
    "org/.name",
    "-org/name",
    "org/na me",
    "org/a--b",
    "org/a..b",
    "org\u0000/name",
    `org/${"x".repeat(97)}`,
    "x".repeat(100_000),
  ];
  for (const model of impossible) {
    it(`is not found where ${JSON.stringify(model.slice(0, 20))} is neither a path nor a hub id, and the error says what was tried`, async () => {
      await assert.rejects(
        resolveModel(model),
        checkpointError("MODEL_NOT_FOUND", /no file or directory/, /org\/name/),
      );
    });
  }

  for (const revision of ["", "../main", "a/../b", "/main", "a//b", "main/", "a b", "-x", "a\u0000", "..", "."]) {
    it(`of the hub is not asked for at the revision ${JSON.stringify(revision)}, which Git cannot have`, async () => {
      await assert.rejects(resolveModel("org/name", { revision }), optionError("INVALID_REVISION"));
      await assert.rejects(resolveModel(`org/name@${revision}`), optionError("INVALID_REVISION"));
    });
  }

  it("of the hub is not asked for at two revisions", async () => {
    await assert.rejects(
      resolveModel("org/name@v1", { revision: "v2" }),
      optionError("INVALID_REVISION", /"v2".*"v1"/),
    );
  });
});
