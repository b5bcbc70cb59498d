import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as testing from "../../src/testing/index.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const page = readFileSync(join(root, "docs", "testing.md"), "utf8");
const EXAMPLES = "test/testing/examples";

describe("docs/testing.md", () => {
  it("shows the examples as they are compiled and run, all of them", () => {
    const shown = new Map(
      [...page.matchAll(/^```ts (\S+)\n([\s\S]*?)^```$/gm)].map(([, file = "", code = ""]) => [file, code]),
    );
    const files = readdirSync(join(root, EXAMPLES)).map((name) => `${EXAMPLES}/${name}`);
    assert.deepEqual([...shown.keys()].sort(), files.sort());
    assert.equal(files.length, 4);
    for (const [file, code] of shown) assert.equal(code, readFileSync(join(root, file), "utf8"), file);
    assert.doesNotMatch(page, /^```ts$/m, "a block of TypeScript that no test runs");
  });

  it("names every assertion there is", () => {
    const assertions = Object.keys(testing).filter((name) => name.startsWith("expect"));
    assert.ok(assertions.length >= 5);
    for (const name of assertions) assert.ok(page.includes(`\`${name}(`) || page.includes(`await ${name}(`), name);
  });
});
