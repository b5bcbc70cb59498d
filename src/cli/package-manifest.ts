/** What the command line takes from shardloom's own package.json. */
import { fileURLToPath } from "node:url";
import { InternalError } from "../core/errors.js";
import { isJsonObject, readJsonObject } from "../core/json.js";

export interface PackageManifest {
  readonly version: string;
  /** Packages of plugins that commands load when they are installed. */
  readonly defaultPlugins: readonly string[];
}

/** Folder of the package; this file runs from dist/src/cli in it. */
export const packageFolder = fileURLToPath(new URL("../../../", import.meta.url));

export function readPackageManifest(): PackageManifest {
  const { version, shardloom } = readJsonObject(fileURLToPath(new URL("../../../package.json", import.meta.url)));
  const names = isJsonObject(shardloom) ? shardloom["defaultPlugins"] : undefined;
  if (typeof version !== "string" || !Array.isArray(names)) {
    throw new InternalError("expected package.json to hold a version and shardloom.defaultPlugins");
  }
  return { version, defaultPlugins: names.filter((name) => typeof name === "string") };
}
