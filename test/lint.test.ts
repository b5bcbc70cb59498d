import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const biome = join(dirname(createRequire(import.meta.url).resolve("@biomejs/biome/package.json")), "bin", "biome");

/** The floors of ARCHITECTURE.md, from the ground up. */
const floors: readonly (readonly string[])[] = [
  ["core"],
  ["kernels", "collectives", "checkpoint", "parallel"],
  ["quantization"],
  ["layers"],
  ["models", "loading"],
  ["rank"],
  ["engine", "coordinator"],
  ["api"],
  ["server", "cli", "testing"],
];

/** Plants files in a copy of the configuration; returns, for each, the import specifiers that Biome forbids in it. */
function forbidden(planted: ReadonlyMap<string, readonly string[]>): Map<string, string[]> {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-lint-"));
  try {
    const config = JSON.parse(readFileSync(join(root, "biome.json"), "utf8"));
    writeFileSync(join(folder, "biome.json"), JSON.stringify({ ...config, vcs: { enabled: false } }));
    for (const [path, specifiers] of planted) {
      const file = join(folder, path);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(
        file,
        specifiers.map((name, i) => `export type { X${i} } from ${JSON.stringify(name)};\n`).join(""),
      );
    }
    const { stdout } = spawnSync(
      process.execPath,
      [biome, "lint", "--only=style/noRestrictedImports", "--reporter=github", "--max-diagnostics=none", "."],
      { cwd: folder, encoding: "utf8" },
    );
    const found = new Map<string, string[]>([...planted.keys()].map((path) => [path, []]));
    for (const [, file = "", line = ""] of stdout.matchAll(/file=([^,]+),line=(\d+)/g)) {
      const path = [...planted.keys()].find((candidate) => file.endsWith(candidate));
      if (path !== undefined) found.get(path)?.push(planted.get(path)?.[Number(line) - 1] ?? "?");
    }
    for (const specifiers of found.values()) specifiers.sort();
    return found;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("lint", () => {
  it("knows every folder of src/", () => {
    const folders = readdirSync(join(root, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
    for (const { name } of folders) assert.ok(floors.flat().includes(name), `src/${name} stands on no floor`);
  });

  it("finds an import from a higher floor, or from a sibling on the same one, in every folder", () => {
    const specifier = (name: string): string => `../${name}/x.js`;
    const planted = new Map<string, string[]>();
    const expected = new Map<string, string[]>();
    floors.forEach((floor, i) => {
      const below = floors.slice(0, i).flat();
      for (const folder of floor) {
        const others = floors.flat().filter((name) => name !== folder && !below.includes(name));
        planted.set(`src/${folder}/planted.ts`, [...below, folder, ...others].map(specifier));
        expected.set(`src/${folder}/planted.ts`, others.map(specifier).sort());
      }
    });
    assert.deepEqual(forbidden(planted), expected);
  });

  it("keeps plugins to shardloom/plugin, and thread entries to rank and below", () => {
    const plugin = ["shardloom", "shardloom/testing", "../../../src/core/dtype.js"];
    const worker = ["../src/engine/x.js", "../src/coordinator/x.js"];
    const found = forbidden(
      new Map([
        ["plugins/any/src/planted.ts", ["shardloom/plugin", "./own.js", ...plugin]],
        ["workers/planted.ts", ["../src/rank/x.js", ...worker]],
      ]),
    );
    assert.deepEqual([...found.values()], [plugin.toSorted(), worker.toSorted()]);
  });
});
