import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { companionFiles } from "../../src/checkpoint/companion-files.js";
import { checkOutput, checkOutputApart, OutputDirectory } from "../../src/checkpoint/output-directory.js";
import { OutputFile } from "../../src/checkpoint/output-file.js";
import { ShardloomError } from "../../src/core/errors.js";
import { temporaryFolder } from "./files.js";

const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

describe("a directory that appears as a whole", () => {
  const folder = temporaryFolder();
  const keep = { overwrite: false };
  const overwrite = { overwrite: true };

  it("has another name, hidden, until it is complete", () => {
    const target = join(folder.path, "model");
    const output = OutputDirectory.create(target, 0, keep);
    writeFileSync(join(output.path, "config.json"), "{}");
    assert.deepEqual(
      readdirSync(folder.path).map((name) => name.replace(/[0-9a-f]{8}$/, "*")),
      [".model.incomplete-*"],
    );
    output.commit();
    output.discard();
    assert.deepEqual(readdirSync(folder.path), ["model"]);
    assert.deepEqual(readdirSync(target), ["config.json"]);
  });

  it("leaves nothing when it is given up", () => {
    const output = OutputDirectory.create(join(folder.path, "model"), 0, keep);
    writeFileSync(join(output.path, "config.json"), "{}");
    output.discard();
    output.discard();
    assert.deepEqual(readdirSync(folder.path), []);
  });

  it("takes the place of a model only when it may, all of it", () => {
    folder.write("model/config.json", "old");
    folder.write("model/old.safetensors", "old");
    const target = join(folder.path, "model");
    assert.throws(() => checkOutput(target, keep), code("OUTPUT_EXISTS"));
    const output = OutputDirectory.create(target, 0, overwrite);
    writeFileSync(join(output.path, "config.json"), "new");
    assert.equal(readFileSync(join(target, "config.json"), "utf8"), "old");
    output.commit();
    assert.deepEqual(readdirSync(folder.path), ["model"]);
    assert.deepEqual(readdirSync(target), ["config.json"]);
    assert.equal(readFileSync(join(target, "config.json"), "utf8"), "new");
  });

  it("does not take a place that was taken while it was filled", () => {
    const target = join(folder.path, "model");
    const output = OutputDirectory.create(target, 0, keep);
    folder.write("model/config.json", "theirs");
    assert.throws(() => output.commit(), code("OUTPUT_EXISTS"));
    output.discard();
    assert.deepEqual(readdirSync(folder.path), ["model"]);
    assert.equal(readFileSync(join(target, "config.json"), "utf8"), "theirs");
  });

  it("never takes the place of what is no model", () => {
    folder.write("file", "");
    folder.write("home/config.json", "");
    folder.write("home/letters/one", "");
    folder.write("notes/a.txt", "");
    mkdirSync(join(folder.path, "empty"));
    symlinkSync("empty", join(folder.path, "link"));
    for (const name of ["file", "home", "notes", "link"]) {
      assert.throws(() => checkOutput(join(folder.path, name), overwrite), code("INVALID_OUTPUT"), name);
    }
    checkOutput(join(folder.path, "empty"), overwrite);
  });

  it("lies in a directory that exists", () => {
    folder.write("file", "");
    for (const name of ["absent/model", "file/model"]) {
      assert.throws(() => checkOutput(join(folder.path, name), keep), code("INVALID_OUTPUT"), name);
    }
  });

  it("is not the model that is read, nor what that lies in", () => {
    const source = folder.write("model/model.gguf", "");
    symlinkSync("model", join(folder.path, "link"));
    for (const name of ["model", "link", ""]) {
      assert.throws(() => checkOutputApart(join(folder.path, name), source), code("INVALID_OUTPUT"), name);
      assert.throws(
        () => checkOutputApart(join(folder.path, name), join(folder.path, "model")),
        code("INVALID_OUTPUT"),
      );
    }
    mkdirSync(join(folder.path, "mode"));
    checkOutputApart(join(folder.path, "mode"), source);
    checkOutputApart(join(folder.path, "new"), source);
  });

  it("is not begun where the disk has no room for it", () => {
    const target = join(folder.path, "model");
    assert.throws(
      () => OutputDirectory.create(target, Number.MAX_SAFE_INTEGER, keep),
      (error) => code("INSUFFICIENT_SPACE")(error) && error instanceof Error && error.message.includes(folder.path),
    );
    assert.deepEqual(readdirSync(folder.path), []);
  });

  it("cannot be made where the system does not let it", function () {
    if (!existsSync("/proc/self")) return this.skip();
    assert.throws(() => OutputDirectory.create("/proc/model", 0, keep), code("WRITE_FAILED"));
  });
});

describe("a file written at positions", () => {
  const folder = temporaryFolder();

  it("holds bytes wherever they were put, and zeros between them", () => {
    const path = join(folder.path, "file");
    OutputFile.create(path).close();
    const file = OutputFile.open(path);
    file.write(Uint8Array.of(5, 6), 3);
    file.write(Uint8Array.of(1), 0);
    file.sync();
    file.close();
    file.close();
    assert.deepEqual([...readFileSync(path)], [1, 0, 0, 5, 6]);
  });

  it("is not created over another, nor opened where there is none", () => {
    const path = folder.write("file", "theirs");
    assert.throws(() => OutputFile.create(path), code("WRITE_FAILED"));
    assert.throws(() => OutputFile.open(join(folder.path, "absent")), code("WRITE_FAILED"));
    assert.equal(readFileSync(path, "utf8"), "theirs");
    assert.equal(existsSync(join(folder.path, "absent")), false);
  });

  it("says what the system says when the disk is full", function () {
    if (!existsSync("/dev/full")) return this.skip();
    const file = OutputFile.open("/dev/full");
    try {
      assert.throws(
        () => file.write(Uint8Array.of(1), 0),
        (error) => code("WRITE_FAILED")(error) && error instanceof Error && error.message.includes("ENOSPC"),
      );
    } finally {
      file.close();
    }
  });
});

describe("files that go with weights", () => {
  it("are tokenizers, templates, settings and licenses, but no weights, indexes or config.json", () => {
    const companions = [
      "LICENSE",
      "NOTICE.md",
      "added_tokens.json",
      "chat_template.jinja",
      "generation_config.json",
      "merges.txt",
      "special_tokens_map.json",
      "tokenizer.json",
      "tokenizer.model",
      "tokenizer_config.json",
      "vocab.json",
    ];
    const others = [
      ".gitattributes",
      ".hidden.json",
      "README.md",
      "config.json",
      "consolidated.00.pth",
      "model-00001-of-00002.safetensors",
      "model.gguf",
      "model.safetensors.index.json",
      "pytorch_model.bin",
      "pytorch_model.bin.index.json",
    ];
    assert.deepEqual(companionFiles([...others, ...companions]), companions);
  });
});
