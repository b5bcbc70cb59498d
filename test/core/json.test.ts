import assert from "node:assert/strict";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import { MAX_JSON_BYTES, parseJsonObject, readJsonObject, readTextFile } from "../../src/core/json.js";
import { checkpointError, temporaryFolder } from "../checkpoint/files.js";

describe("a JSON file of a model", () => {
  const folder = temporaryFolder();

  it("is one object", () => {
    assert.deepEqual(readJsonObject(folder.write("config.json", '{"a":[1,null]}')), { a: [1, null] });
    for (const text of ["[]", "null", '"{}"', "1"]) {
      assert.throws(
        () => parseJsonObject(text, "config.json"),
        checkpointError("INVALID_JSON", /^config\.json: expected a JSON object/),
      );
    }
    assert.throws(
      () => parseJsonObject("{", "config.json"),
      checkpointError("INVALID_JSON", /^config\.json: expected JSON/),
    );
  });

  it("may start with a byte order mark, as editors on Windows write it", () => {
    assert.deepEqual(readJsonObject(folder.write("config.json", '\ufeff{"a":1}')), { a: 1 });
  });

  it("that is not UTF-8 is refused instead of read with replacement characters", () => {
    const file = folder.write("tokenizer.json", Uint8Array.of(0x22, 0xe4, 0x22));
    assert.throws(() => readTextFile(file), checkpointError("INVALID_UTF8", /tokenizer\.json/));
  });

  it("above the limit is refused before it is read", () => {
    const file = folder.write("tokenizer.json", "");
    truncateSync(file, MAX_JSON_BYTES + 1);
    assert.throws(() => readTextFile(file), checkpointError("FILE_TOO_LARGE", /at most 268435456 bytes.*268435457/));
  });

  it("that cannot be read is reported with the reason", () => {
    assert.throws(() => readTextFile(join(folder.path, "none")), checkpointError("FILE_NOT_FOUND", /none: ENOENT/));
    assert.throws(() => readTextFile(folder.path), checkpointError("FILE_NOT_FOUND", /not a regular file/));
  });
});
