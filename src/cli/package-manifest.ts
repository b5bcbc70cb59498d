/** What the command line takes from shardloom's own package.json. */
import { fileURLToPath } from "node:url";
import { InternalError } from "../core/errors.js";
import { isJsonObject, readJsonObject } from "../core/json.js";
import { packageFolder } from "../core/package-files.js";

export interface PackageManifest {
  readonly version: string;
  /** Packages of plugins that commands load when they are installed. */
  readonly defaultPlugins: readonly string[];
}

export function readPackageManifest(): PackageManifest {
  const { version, shardloom } = readJsonObject(fileURLToPath(new URL("package.json", packageFolder)));
  const names = isJsonObject(shardloom) ? shardloom["defaultPlugins"] : undefined;
  if (typeof version !== "string" || !Array.isArray(names)) {
    throw new InternalError("expected package.json to hold a version and shardloom.defaultPlugins");
  }
  return { version, defaultPlugins: names.filter((name) => typeof name === "string") };
}
