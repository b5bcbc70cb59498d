/** Registering: the version, and that it may be done as often as engines and threads do it. */
import {
  createRegistries,
  PLUGIN_API_VERSION,
  type Plugin,
  type Registries,
  registerPlugin,
} from "../loading/plugins.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { PluginCheck } from "./conformance-check.js";
import { formatsOf } from "./conformance-fixture.js";
import { within } from "./conformance-load.js";

/** `fresh` makes the plugin anew, as far as that can be done. */
export function registrationChecks(plugin: Plugin, fresh: () => Plugin): readonly PluginCheck[] {
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `registration: ${what}`, run });
  return [
    check(`states plugin API version ${PLUGIN_API_VERSION}`, async () => checkVersion(plugin)),
    check("brings at least one format", async () => {
      const formats = formatsOf(await registered(plugin));
      if (formats.length === 0) throw failure("expected a model loader, a quantization config or a quantizer", "none");
    }),
    check("the same object twice is a no-op", () => checkRepeated(plugin, plugin, "the same plugin registers again")),
    check("a fresh object of the plugin is a no-op", () => {
      return checkRepeated(plugin, fresh(), "a fresh object of the plugin registers beside the first one");
    }),
    check("every engine of a thread gets the same formats", async () => {
      const first = formatsOf(await registered(plugin));
      const second = formatsOf(await registered(plugin));
      if (second.length === 0) throw failure("a second engine registers the plugin: expected its formats", "none");
      compareFormats("a second engine registers the plugin", first, second);
    }),
  ];
}

function checkVersion({ apiVersion }: Plugin): void {
  if (apiVersion === PLUGIN_API_VERSION) return;
  throw failure(`expected apiVersion to be ${PLUGIN_API_VERSION}`, JSON.stringify(apiVersion) ?? "nothing");
}

async function registered(plugin: Plugin): Promise<Registries> {
  const registries = createRegistries();
  await within("register()", {}, () => registerPlugin(registries, plugin));
  return registries;
}

async function checkRepeated(plugin: Plugin, again: Plugin, what: string): Promise<void> {
  const registries = await registered(plugin);
  const before = formatsOf(registries);
  await within(`${what} (loaders and configs are made once, not in register())`, {}, () => {
    registerPlugin(registries, again);
  });
  compareFormats(what, before, formatsOf(registries));
}

function compareFormats(what: string, expected: readonly string[], received: readonly string[]): void {
  if (expected.join() === received.join()) return;
  throw failure(`${what}: expected ${expected.join(", ")}`, received.join(", ") || "nothing");
}

function failure(expected: string, received: string): SimulationAssertionError {
  return new SimulationAssertionError(`${expected} but received ${received}`, { expected, received });
}
