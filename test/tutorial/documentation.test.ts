/** docs/quantization-plugin.md shows the plugin and its tests as they are compiled and run, and nothing else. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cli } from "../cli/cli-process.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const read = (file: string): string => readFileSync(join(root, file), "utf8");
const page = read("docs/quantization-plugin.md");

const FOLDER = "test/tutorial/ternary-plugin";
const PLUGIN = `${FOLDER}/index.ts`;

/** Blocks of code by what stands behind their language. */
const blocks = [...page.matchAll(/^```(\w+) ?(.*)\n([\s\S]*?)^```$/gm)].map(
  ([, language = "", source = "", code = ""]) => ({ language, source, code }),
);
const ofSource = (source: string): readonly string[] => {
  return blocks.filter((block) => block.source === source).map(({ code }) => code);
};
const withoutBlankLines = (text: string): string => text.replaceAll(/^\s*\n/gm, "");

describe("docs/quantization-plugin.md", () => {
  it("shows the whole plugin, piece by piece and in order; it has at most 100 lines", () => {
    const pieces = ofSource(PLUGIN);
    assert.ok(pieces.length > 5);
    assert.equal(withoutBlankLines(pieces.join("")), withoutBlankLines(read(PLUGIN)));
    assert.ok(read(PLUGIN).trimEnd().split("\n").length <= 100);
  });

  it("shows the plugin's test and package.json whole, and parts of other files word for word", () => {
    for (const source of [`${FOLDER}/index.test.ts`, `${FOLDER}/package.json`]) {
      assert.deepEqual(ofSource(source), [read(source)], source);
    }
    for (const { source, code } of blocks.filter(({ source: file }) => file.startsWith("test/"))) {
      assert.ok(read(source).includes(code), `${source} does not hold\n${code}`);
    }
  });

  it("has no code that comes from no file, but for the shell's and for what config.json holds", () => {
    const others = blocks.filter(({ source }) => !source.startsWith("test/"));
    assert.deepEqual(
      others.map(({ language, source }) => `${language} ${source}`.trimEnd()),
      ["json quantization_config", "sh"],
    );
    const [config = ""] = ofSource("quantization_config");
    assert.deepEqual(JSON.parse(config), { quant_method: "ternary", block_rows: 32 });
  });

  it("the plugin imports shardloom/plugin alone", () => {
    const imports = [...read(PLUGIN).matchAll(/from "([^"]+)"/g)].map(([, specifier]) => specifier);
    assert.deepEqual(imports, ["shardloom/plugin"]);
  });

  it("shows flags that exist", async () => {
    const shell = blocks.filter(({ language }) => language === "sh").map(({ code }) => code);
    const lines = shell.join("\n").split("\n");
    const shardloom = lines.filter((line) => line.includes("npx shardloom"));
    assert.ok(shardloom.length >= 2);
    for (const line of shardloom) {
      const [, command = ""] = /npx shardloom (\w+)/.exec(line) ?? [];
      const { stdout } = await cli(["help", command]);
      for (const flag of line.match(/--[a-z][a-z-]*/g) ?? []) assert.ok(stdout.includes(flag), `${flag} in: ${line}`);
    }
  });
});
