/** What shardloom promises its users of every plugin: the conformance kit, over a model whose matrices are of eight formats. */
import { type PluginFixture, testPlugin } from "shardloom/testing";
import { plugin } from "../src/index.js";
import { readExpected, valuesOf } from "./expected.js";
import { fixturePath } from "./fixture.js";

const values = new Map(readExpected("model").map((tensor) => [tensor.name, valuesOf(tensor)]));

const model: PluginFixture = {
  name: "model.gguf",
  model: fixturePath("model.gguf"),
  expected: (weight) => values.get(weight),
};

describe("@shardloom/gguf keeps what a plugin promises", () => {
  for (const { name, run } of testPlugin(plugin, [model])) it(name, run);
});
