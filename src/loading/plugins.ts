/**
 * Plugins: plain objects that register model loaders, quantization configs and checkpoint quantizers. They are named in options and loaded
 * once in every thread; each thread fills registries of its own, and registering is idempotent.
 */
import { createRequire } from "node:module";
import { isAbsolute, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { describeValue, PluginError, reasonOf, ShardloomError } from "../core/errors.js";
import { type CheckpointQuantizer, CheckpointQuantizerRegistry } from "../quantization/checkpoint-quantizer.js";
import type { QuantizationConfigFactory } from "../quantization/contract.js";
import { QuantizationRegistry } from "../quantization/registry.js";
import type { ModelLoader } from "./model-loader.js";
import { createModelLoaderRegistry, type ModelLoaderRegistry } from "./registry.js";
import { STATE_METHOD, stateQuantization } from "./sharded-state/quantization.js";

/** Major version of the plugin API. A plugin states the one it was built for. */
export const PLUGIN_API_VERSION = 1;

/** What a plugin may do while it registers. */
export interface PluginContext {
  /** Adds a model loader under its format. Throws PluginError `DUPLICATE_REGISTRATION` if another one has it. */
  registerModelLoader(loader: ModelLoader): void;
  /** Adds a quantization format. Throws PluginError `DUPLICATE_REGISTRATION` if another factory has its name. */
  registerQuantizationConfig(name: string, factory: QuantizationConfigFactory): void;
  /** Adds a format that checkpoints can be quantized into. Throws PluginError `DUPLICATE_REGISTRATION` if its name is taken. */
  registerCheckpointQuantizer(format: string, quantizer: CheckpointQuantizer): void;
}

/** A plugin. A package exports one as `plugin`. */
export interface Plugin {
  /** Package name, for messages. */
  readonly name: string;
  /** The PLUGIN_API_VERSION it was built for. */
  readonly apiVersion: number;
  /** Called once for each engine and thread; must be safe to call again. */
  register(context: PluginContext): void;
}

/** What plugins have registered, for one engine in one thread. */
export interface Registries {
  readonly modelLoaders: ModelLoaderRegistry;
  readonly quantization: QuantizationRegistry;
  readonly checkpointQuantizers: CheckpointQuantizerRegistry;
}

/** Registries that hold what shardloom itself brings. */
export function createRegistries(): Registries {
  const quantization = new QuantizationRegistry();
  quantization.register(STATE_METHOD, stateQuantization, "shardloom");
  return {
    modelLoaders: createModelLoaderRegistry(),
    quantization,
    checkpointQuantizers: new CheckpointQuantizerRegistry(),
  };
}

/** Lets a plugin register. Throws PluginError when it is not a plugin, was built for another API, or its hook throws. */
export function registerPlugin(registries: Registries, plugin: Plugin): void {
  checkPlugin(plugin, "a plugin");
  const { name } = plugin;
  try {
    plugin.register({
      registerModelLoader: (loader) => registries.modelLoaders.register(loader, name),
      registerQuantizationConfig: (method, factory) => registries.quantization.register(method, factory, name),
      registerCheckpointQuantizer: (format, quantizer) => {
        registries.checkpointQuantizers.register(format, quantizer, name);
      },
    });
  } catch (error) {
    if (error instanceof ShardloomError) throw error;
    const message = reasonOf(error);
    throw new PluginError(
      "PLUGIN_FAILED",
      `plugin ${name} failed to register: ${message}`,
      { plugin: name },
      { cause: error },
    );
  }
}

/**
 * Resolves a plugin named by a user, from the working directory first, then from where shardloom is installed: a path or
 * a package name. Returns the file URL to import, the same in every thread. Throws PluginError `PLUGIN_NOT_FOUND`.
 */
export function resolvePlugin(specifier: string, directory = process.cwd()): string {
  const isPath = specifier.startsWith(".") || isAbsolute(specifier);
  if (specifier.startsWith("file:")) return specifier;
  const origins = [pathToFileURL(join(directory, "package.json")).href, import.meta.url];
  let reason = "";
  for (const origin of origins) {
    try {
      const path = createRequire(origin).resolve(isPath ? resolve(directory, specifier) : specifier);
      return pathToFileURL(path).href;
    } catch (error) {
      reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    }
  }
  throw new PluginError(
    "PLUGIN_NOT_FOUND",
    `cannot find plugin ${JSON.stringify(specifier)} (${reason}); expected an installed package or a path`,
    { plugin: specifier, received: specifier },
  );
}

/**
 * File URLs of the plugins that a user names, and of those in SHARDLOOM_PLUGINS, each once. Throws PluginError
 * `PLUGIN_NOT_FOUND`.
 */
export function resolvePlugins(named: readonly string[]): readonly string[] {
  const inEnvironment = (process.env["SHARDLOOM_PLUGINS"] ?? "").split(",").map((name) => name.trim());
  const specifiers = [...named, ...inEnvironment.filter((name) => name !== "")];
  return [...new Set(specifiers.map((specifier) => resolvePlugin(specifier)))];
}

/** Imports a resolved plugin. Throws PluginError `PLUGIN_FAILED` or `INVALID_PLUGIN`. */
export async function importPlugin(url: string): Promise<Plugin> {
  let module: unknown;
  try {
    module = await import(url);
  } catch (error) {
    const message = reasonOf(error);
    throw new PluginError(
      "PLUGIN_FAILED",
      `cannot import plugin ${url}: ${message}`,
      { plugin: url },
      { cause: error },
    );
  }
  const plugin = typeof module === "object" && module !== null && "plugin" in module ? module.plugin : undefined;
  checkPlugin(plugin, url);
  return plugin;
}

/** Registries of one engine in one thread, with every plugin registered in order. */
export async function loadPlugins(urls: readonly string[]): Promise<Registries> {
  const registries = createRegistries();
  for (const url of urls) registerPlugin(registries, await importPlugin(url));
  return registries;
}

function checkPlugin(plugin: unknown, what: string): asserts plugin is Plugin {
  const valid =
    typeof plugin === "object" &&
    plugin !== null &&
    "name" in plugin &&
    typeof plugin.name === "string" &&
    "apiVersion" in plugin &&
    "register" in plugin &&
    typeof plugin.register === "function";
  if (!valid) {
    throw new PluginError(
      "INVALID_PLUGIN",
      `${what}: expected an export "plugin" with name, apiVersion and register() but received ${describeValue(plugin)}`,
      { plugin: what },
    );
  }
  if (plugin.apiVersion !== PLUGIN_API_VERSION) {
    throw new PluginError(
      "PLUGIN_API_VERSION",
      `plugin ${String(plugin.name)}: expected plugin API version ${PLUGIN_API_VERSION} but it was built for ${String(plugin.apiVersion)}`,
      { plugin: String(plugin.name), expected: PLUGIN_API_VERSION, received: String(plugin.apiVersion) },
    );
  }
}
