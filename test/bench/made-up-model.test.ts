import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createGgufLoader } from "@shardloom/gguf";
import { writeGguf } from "../../bench/models/gguf-writer.js";
import { WEIGHT_MIXES, weightBytesPerToken, writeMadeUpModel } from "../../bench/models/made-up-model.js";
import { layerMatrices, type ModelShape, SMOLLM2_135M, weightCounts } from "../../bench/models/shapes.js";
import { bytesOfElements, weightType } from "../../bench/models/weight-types.js";
import { launch } from "../../src/index.js";

const shape: ModelShape = {
  name: "small",
  hidden: 256,
  intermediate: 512,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headSize: 64,
  vocabulary: 600,
  contextLength: 64,
  ropeTheta: 10_000,
  tied: false,
};

describe("made-up models of benches", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "shardloom-bench-"));
  });
  after(() => rmSync(folder, { recursive: true }));

  const loader = createGgufLoader();

  for (const mix of WEIGHT_MIXES) {
    it(`of ${mix.name} are read back by the GGUF plugin: shape, every tensor, values of a fresh model`, async () => {
      const path = join(folder, `${mix.name}.gguf`);
      writeMadeUpModel(path, shape, mix);
      const { config, tokenizer } = await loader.describe(path);
      assert.deepEqual(
        [config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"], config["vocab_size"]],
        [shape.hidden, shape.layers, shape.kvHeads, shape.vocabulary],
      );
      assert.notEqual(tokenizer, null);
      const checkpoint = await loader.open(path);
      try {
        assert.equal(checkpoint.tensors.size, 3 + shape.layers * (2 + layerMatrices(shape, 0).length));
        const up = checkpoint.tensors.get("model.layers.1.mlp.up_proj.weight");
        assert.deepEqual(up?.shape, [shape.intermediate, shape.hidden]);
        if (up?.dtype !== "f32") return;
        const values = new Float32Array(shape.intermediate * shape.hidden);
        up.read(new Uint8Array(values.buffer), 0);
        const deviation = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
        assert.ok(deviation > 0.01 && deviation < 0.04, `standard deviation ${deviation}`);
      } finally {
        checkpoint.close();
      }
    });
  }

  it("are the same bytes whenever they are written", () => {
    const [mix] = WEIGHT_MIXES;
    if (mix === undefined) return;
    const [one, two] = [join(folder, "one.gguf"), join(folder, "two.gguf")];
    writeMadeUpModel(one, shape, mix);
    writeMadeUpModel(two, shape, mix);
    assert.ok(readFileSync(one).equals(readFileSync(two)));
  });

  it("generate, with finite log-probabilities", async () => {
    const path = join(folder, "generate.gguf");
    writeMadeUpModel(path, shape, { name: "Q4_0", layers: "Q4_0", head: "Q8_0" });
    const engine = await launch({ model: path, plugins: ["@shardloom/gguf"] });
    try {
      const { nll } = await engine.score([300, 301, 302, 303]);
      // Made-up weights make no token much likelier than another.
      for (const value of nll) assert.ok(Math.abs(value - Math.log(shape.vocabulary)) < 2, `${value}`);
    } finally {
      await engine.close();
    }
  });

  it("count as many bytes a token as the sample model's file has weights", () => {
    // 98,362,432 bytes of file, of which 96,576,768 are tensors: what llama.cpp says of it. Norms are not counted.
    const norms = 4 * SMOLLM2_135M.hidden * (2 * SMOLLM2_135M.layers + 1);
    const bytes = weightBytesPerToken(SMOLLM2_135M, { name: "sample", layers: "Q4_1", head: "Q8_0" });
    assert.equal(bytes + norms, 96_576_768);
    assert.equal(weightCounts(SMOLLM2_135M).layers + weightCounts(SMOLLM2_135M).head + norms / 4, 134_515_008);
    assert.equal(bytesOfElements(weightType("Q4_0"), 64), 36);
  });

  it("a tensor whose data has another size than its description is refused", () => {
    const tensor = { name: "t", dimensions: [4], ggmlType: 0, bytes: 16, data: () => [new Uint8Array(12)] };
    assert.throws(
      () => writeGguf(join(folder, "short.gguf"), new Map(), [tensor]),
      /expected 16 bytes of t but received 12/,
    );
  });
});
