/** The plugins that come with the command line without being named. */
import { fileURLToPath } from "node:url";
import { PluginError } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import { packageFolder } from "../core/package-files.js";
import { resolvePlugin } from "../loading/plugins.js";
import { readPackageManifest } from "./package-manifest.js";

/**
 * File URLs of the plugins that shardloom's package.json lists, as far as they are installed beside it; one that is not
 * is no error. The working directory is not searched: nobody asked for code from there.
 */
export function defaultPlugins(logger: Logger, names = readPackageManifest().defaultPlugins): readonly string[] {
  return names.flatMap((name) => {
    try {
      return [resolvePlugin(name, fileURLToPath(packageFolder))];
    } catch (error) {
      if (!(error instanceof PluginError && error.code === "PLUGIN_NOT_FOUND")) throw error;
      logger.debug({ plugin: name }, "default plugin is not installed");
      return [];
    }
  });
}
