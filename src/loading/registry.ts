/** The model loaders that one engine knows in one thread: shardloom's own, and those that plugins registered. */
import { readdirSync, statSync } from "node:fs";
import { extname } from "node:path";
import { CheckpointError, describeValue, OptionError, PluginError, reasonOf, ShardloomError } from "../core/errors.js";
import { safetensorsLoader } from "./default-loader.js";
import { dummyLoader } from "./dummy-loader.js";
import type { ModelLoader } from "./model-loader.js";
import { shardedStateLoader } from "./sharded-state/loader.js";

/** `loadFormat` that asks every loader whether it recognizes the model. */
export const AUTO_FORMAT = "auto";

interface Entry {
  readonly loader: ModelLoader;
  readonly owner: string;
}

export class ModelLoaderRegistry {
  readonly #entries = new Map<string, Entry>();

  /**
   * Registers a loader under its format, on behalf of package `owner`. The same object twice is a no-op. Throws
   * PluginError `INVALID_MODEL_LOADER` for an object that is not a loader, `DUPLICATE_REGISTRATION`, naming both
   * packages, for another one under a taken format.
   */
  register(loader: ModelLoader, owner: string): void {
    checkModelLoader(loader, owner);
    const existing = this.#entries.get(loader.format);
    if (existing?.loader === loader) return;
    if (existing !== undefined) {
      throw new PluginError(
        "DUPLICATE_REGISTRATION",
        `model loader "${loader.format}": ${owner} cannot register it because ${existing.owner} already has`,
        { plugin: owner, expected: existing.owner, received: owner },
      );
    }
    this.#entries.set(loader.format, { loader, owner });
  }

  /**
   * The loader for a model at a local path: the one of `loadFormat`, or under "auto" the first, in the order of
   * registration, that recognizes it. Throws OptionError `UNKNOWN_LOAD_FORMAT`, CheckpointError `UNRECOGNIZED_MODEL`, both
   * listing the known formats, or PluginError `PLUGIN_FAILED` when a loader's `matches` throws.
   */
  select(path: string, loadFormat = AUTO_FORMAT): ModelLoader {
    if (loadFormat !== AUTO_FORMAT) {
      const entry = this.#entries.get(loadFormat);
      if (entry === undefined) throw this.#unknownFormat(loadFormat);
      return entry.loader;
    }
    for (const entry of this.#entries.values()) if (matches(entry, path)) return entry.loader;
    throw this.#unrecognized(path);
  }

  /** Registered formats, in order. */
  get formats(): readonly string[] {
    return [...this.#entries.keys()];
  }

  #unknownFormat(loadFormat: string): OptionError {
    const known = [AUTO_FORMAT, ...this.formats].join(", ");
    return new OptionError(
      "UNKNOWN_LOAD_FORMAT",
      `expected a load format (${known}) but received ${JSON.stringify(loadFormat)}; a plugin that brings it is named with --plugin`,
      { option: "loadFormat", expected: known, received: loadFormat },
    );
  }

  #unrecognized(path: string): CheckpointError {
    // Dummy weights are no format that a model could be in.
    const expected = this.formats.filter((format) => format !== dummyLoader.format).join(", ");
    const received = describePath(path);
    return new CheckpointError(
      "UNRECOGNIZED_MODEL",
      `${path}: expected a model in a known format (${expected}) but received ${received}; a plugin for it may be missing (--plugin)`,
      { file: path, expected, received },
    );
  }
}

/** A registry that holds what shardloom itself brings. */
export function createModelLoaderRegistry(): ModelLoaderRegistry {
  const registry = new ModelLoaderRegistry();
  // Before safetensors, whose files a sharded state has as well.
  registry.register(shardedStateLoader, "shardloom");
  registry.register(safetensorsLoader, "shardloom");
  registry.register(dummyLoader, "shardloom");
  return registry;
}

function matches({ loader, owner }: Entry, path: string): boolean {
  try {
    return loader.matches(path);
  } catch (cause) {
    if (cause instanceof ShardloomError) throw cause;
    const reason = reasonOf(cause);
    throw new PluginError(
      "PLUGIN_FAILED",
      `${owner}: its model loader "${loader.format}" failed to look at ${path}: ${reason}`,
      { plugin: owner, file: path },
      { cause },
    );
  }
}

/** What a plugin in plain JavaScript hands over may be anything. */
function checkModelLoader(loader: unknown, owner: string): void {
  const received = flawOf(loader);
  if (received === null) return;
  throw new PluginError(
    "INVALID_MODEL_LOADER",
    `${owner}: expected a model loader with a format and matches(), describe(), open() but received ${received}`,
    { plugin: owner, received },
  );
}

/** What keeps a value from being a model loader; null when nothing does. */
function flawOf(loader: unknown): string | null {
  if (typeof loader !== "object" || loader === null) return describeValue(loader);
  const format: unknown = Reflect.get(loader, "format");
  if (typeof format !== "string" || format === "" || format === AUTO_FORMAT) return `format ${describeValue(format)}`;
  const lacking = ["matches", "describe", "open"].find((method) => typeof Reflect.get(loader, method) !== "function");
  return lacking === undefined ? null : `no function ${lacking}`;
}

function describePath(path: string): string {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status === undefined) return "nothing";
  if (status.isDirectory()) {
    const names = readdirSync(path);
    const shown = names.slice(0, 5).join(", ");
    return `a directory of ${names.length} files${names.length === 0 ? "" : ` (${shown}${names.length > 5 ? ", ..." : ""})`}`;
  }
  const extension = extname(path);
  if (extension === ".json") return `a .json file (load format "dummy" makes up weights for a config)`;
  return extension === "" ? "a file without an extension" : `a ${extension} file`;
}
