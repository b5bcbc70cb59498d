import assert from "node:assert/strict";
import { weightBytes } from "../../src/checkpoint/weight-bytes.js";
import { temporaryFolder } from "./files.js";

describe("the bytes of a model's weight files", () => {
  const folder = temporaryFolder();

  it("are those of a lone file", () => {
    assert.equal(weightBytes(folder.write("model.gguf", "12345")), 5);
  });

  it("are those of the safetensors files that are read, not of what lies beside them", () => {
    folder.write("model-1.safetensors", "123");
    folder.write("model-2.safetensors", "1234");
    folder.write("consolidated.safetensors", "1234567");
    folder.write("config.json", "{}");
    assert.equal(weightBytes(folder.path), 7);
  });

  it("count a file once that an index names often, and none that is missing", () => {
    folder.write("model-1.safetensors", "123");
    const map = { a: "model-1.safetensors", b: "model-1.safetensors", c: "model-2.safetensors" };
    folder.write("model.safetensors.index.json", JSON.stringify({ weight_map: map }));
    assert.equal(weightBytes(folder.path), 3);
  });

  it("are those of all files where none is a safetensors file", () => {
    folder.write("weights.other", "12");
    folder.write("more.other", "345");
    assert.equal(weightBytes(folder.path), 5);
  });
});
