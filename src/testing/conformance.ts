/**
 * The conformance kit: what a plugin promises to shardloom, as checks that any test runner can loop over. The plugin's
 * author hands over small models in its format; the kit loads them whole and in shards, changes them, and looks at what
 * the plugin makes of it.
 */
import type { Plugin } from "../loading/plugins.js";
import type { PluginCheck } from "./conformance-check.js";
import { type PluginFixture, Subject } from "./conformance-fixture.js";
import { hookChecks } from "./conformance-hooks.js";
import { hostileChecks } from "./conformance-hostile.js";
import { kindChecks } from "./conformance-kinds.js";
import { loaderChecks } from "./conformance-loader.js";
import { memoryChecks } from "./conformance-memory.js";
import { registrationChecks } from "./conformance-registration.js";
import { settingsChecks } from "./conformance-settings.js";
import { wholeModelChecks } from "./conformance-whole-model.js";

/**
 * The checks of a plugin with some models in its format: from registering to whole models, so that the first that fails
 * is the one to look at. `plugin` is the plugin, or a function that makes one anew.
 *
 * ```js
 * describe("my plugin", () => {
 *   for (const { name, run } of testPlugin(plugin, fixtures)) it(name, run);
 * });
 * ```
 */
export function testPlugin(
  plugin: Plugin | (() => Plugin),
  fixtures: readonly PluginFixture[],
): readonly PluginCheck[] {
  const made = typeof plugin === "function" ? plugin() : plugin;
  // A module that is imported under two names exports equal plugins, not the same.
  const fresh = typeof plugin === "function" ? plugin : (): Plugin => ({ ...plugin });
  return [...registrationChecks(made, fresh), ...fixtures.flatMap((fixture) => fixtureChecks(made, fixture))];
}

function fixtureChecks(plugin: Plugin, fixture: PluginFixture): readonly PluginCheck[] {
  const subject = new Subject(plugin, fixture);
  return [
    ...loaderChecks(subject),
    ...hookChecks(subject),
    ...kindChecks(subject),
    ...hostileChecks(subject),
    ...settingsChecks(subject),
    ...memoryChecks(subject),
    ...wholeModelChecks(subject),
  ];
}
