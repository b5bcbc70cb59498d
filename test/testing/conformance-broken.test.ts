/** Every deliberately broken plugin is caught, first of all by the check that is meant for its fault. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type PluginCheck, SimulationAssertionError, testPlugin } from "../../src/testing/index.js";
import { brokenPlugins } from "./broken-plugins/broken.js";
import { writtenFixture } from "./broken-plugins/fixtures.js";

/** The first check that fails, in order, and its error. */
async function firstFailure(
  checks: readonly PluginCheck[],
): Promise<{ readonly name: string; readonly error: unknown } | null> {
  for (const { name, run } of checks) {
    try {
      await run();
    } catch (error) {
      return { name, error };
    }
  }
  return null;
}

describe("the conformance kit catches a plugin that", () => {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-broken-"));
  after(() => rmSync(folder, { recursive: true }));
  const file = writtenFixture(folder);

  for (const { what, plugin, fixture: given, caughtBy, message } of brokenPlugins) {
    it(`${what}: by "${caughtBy}"`, async () => {
      const fixture = given === "file" ? file : given;
      const failure = await firstFailure(testPlugin(plugin, [fixture]));
      assert.ok(failure !== null, "it passed everything");
      const name = caughtBy.startsWith("registration: ") ? caughtBy : `${fixture.name}: ${caughtBy}`;
      assert.equal(failure.name, name, String(failure.error));
      assert.ok(failure.error instanceof SimulationAssertionError, String(failure.error));
      assert.match(failure.error.message, message);
    });
  }
});
