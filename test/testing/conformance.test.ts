/** The conformance kit: an honest plugin passes all of it. What it catches stands in conformance-broken.test.ts. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { testPlugin } from "../../src/testing/index.js";
import { fused, inFlight, oddRows, separate, unknown, writtenFixture } from "./broken-plugins/fixtures.js";
import { NibLoader } from "./broken-plugins/nib-file.js";
import { nibblesPlugin } from "./broken-plugins/nibbles.js";

describe("an honest plugin", () => {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-nibbles-"));
  after(() => rmSync(folder, { recursive: true }));
  const plugin = nibblesPlugin({ loader: new NibLoader() });
  const fixtures = [separate, unknown, fused, oddRows, inFlight, writtenFixture(folder)];
  for (const { name, run } of testPlugin(plugin, fixtures)) it(name, run);
});
