import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../", import.meta.url));

/** What looks like a code and is none: environment variables, and element and block formats. */
const NO_CODE = /^(SHARDLOOM_|HF_|NO_COLOR$|I?Q\d|TQ\d|F8_)/;

/** TypeScript sources of the library, its threads and its plugins. */
function sources(): string[] {
  const plugins = readdirSync(join(root, "plugins")).map((name) => join("plugins", name, "src"));
  return ["src", "workers", ...plugins].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts"))
      .map((name) => readFileSync(join(root, folder, name), "utf8")),
  );
}

/** Codes in the sources: words in capitals with an underscore, and whatever is the first argument of an error. */
function thrownCodes(): Set<string> {
  const codes = new Set<string>();
  for (const source of sources()) {
    for (const [, code = ""] of source.matchAll(/"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"/g)) codes.add(code);
    for (const [, code = ""] of source.matchAll(/Error\(\s*"([A-Z][A-Z0-9_]*)"/g)) codes.add(code);
    for (const [, code = ""] of source.matchAll(/super\(\s*"([A-Z][A-Z0-9_]*)"/g)) codes.add(code);
  }
  return new Set([...codes].filter((code) => !NO_CODE.test(code)));
}

/** Codes in the first column of the page's tables. */
function documentedCodes(): string[] {
  const page = readFileSync(join(root, "docs", "errors.md"), "utf8");
  const rows = page.split("\n").filter((line) => line.startsWith("| `"));
  return rows.flatMap((row) =>
    [...(row.split("|")[1] ?? "").matchAll(/`([A-Z][A-Z0-9_]*)`/g)].map(([, code = ""]) => code),
  );
}

describe("docs/errors.md", () => {
  it("explains every code that the sources throw, once, and no code that nobody throws", () => {
    const documented = documentedCodes();
    assert.deepEqual([...documented].sort(), [...thrownCodes()].sort());
  });
});
