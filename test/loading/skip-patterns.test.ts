import assert from "node:assert/strict";
import { OptionError } from "../../src/core/errors.js";
import { matchModules } from "../../src/loading/skip-patterns.js";

const modules = [
  "model.layers.0.self_attn.q_proj",
  "model.layers.0.mlp.down_proj",
  "model.layers.1.mlp.down_proj",
  "model.layers.10.mlp.down_proj",
  "model.layers.10.mlp.up+proj",
  "lm_head",
];

describe("patterns of modules to skip", () => {
  for (const [patterns, expected, why] of [
    [["lm_head"], [5], "the whole name"],
    [["down_proj"], [1, 2, 3], "a component"],
    [["model.layers.1"], [2], "a dotted prefix, up to a dot"],
    [["model.layers.1*"], [2, 3, 4], "a star for any characters"],
    [["model.layers.1?"], [3, 4], "a question mark for one"],
    [["*.mlp.*"], [1, 2, 3, 4], "a star for dots as well"],
    [["*"], [0, 1, 2, 3, 4, 5], "everything"],
    [["up+proj"], [4], "other characters for themselves"],
    [["lm_head", "q_proj", "lm_head"], [0, 5], "several, in the order of the modules and each once"],
  ] as const) {
    it(`name ${why}: ${patterns.join(" ")}`, () => {
      assert.deepEqual(
        matchModules(patterns, modules),
        expected.map((i) => modules[i]),
      );
    });
  }

  for (const pattern of ["proj", "layers.0", "model.layers.0.", "", "LM_HEAD", "down.proj", "q_proj.weight"]) {
    it(`that name no module are an error, for they were meant to: ${JSON.stringify(pattern)}`, () => {
      assert.throws(
        () => matchModules(["lm_head", pattern], modules),
        (error) => error instanceof OptionError && error.details.received === JSON.stringify(pattern),
      );
    });
  }

  it("are the format's business where there are none, and skip nothing where the list is empty", () => {
    assert.equal(matchModules(null, modules), null);
    assert.deepEqual(matchModules([], modules), []);
  });
});
