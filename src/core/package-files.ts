/**
 * Where the files of this package are that are no modules of the one that runs. This module runs from dist/src/core, and within a
 * bundle from bundle/src/lib (scripts/bundle.mjs), which is laid out alike: from both the same relative paths lead to the
 * package's root, and to the threads and the viewer that belong to the modules that run.
 */

/** Root of the package: package.json lies there. */
export const packageFolder = new URL("../../../", import.meta.url);

/** The file in which a thread begins: a name of workers/. */
export function threadEntry(name: "rank" | "faulty-rank" | "checkpoint-task" | "shard-task"): URL {
  return new URL(`../../workers/${name}.js`, import.meta.url);
}

/** The script of the page of a load profile, compiled from viewer/. */
export const viewerScript = new URL("../../viewer/load-profile-viewer.js", import.meta.url);
