/** Files by which Linux tells about itself (/proc, /sys): short texts that may not be there. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** What a file says, without white space around it; null where it is not there or may not be read. */
export function systemText(root: string, ...path: readonly string[]): string | null {
  try {
    return readFileSync(join(root, ...path), "utf8").trim();
  } catch {
    return null;
  }
}

/** Names in a folder; none where it is not there. */
export function systemNames(root: string, ...path: readonly string[]): readonly string[] {
  try {
    return readdirSync(join(root, ...path));
  } catch {
    return [];
  }
}

/** No system has more CPUs or nodes than this. */
const MOST_IDS = 65_536;

/** Ids from a list such as `0-3,8,10-11`, in order; null for what is no such list, or an empty one. */
export function parseIds(list: string | null): readonly number[] | null {
  if (list === null || !/^\d+(-\d+)?(,\d+(-\d+)?)*$/.test(list)) return null;
  const ids = new Set<number>();
  for (const range of list.split(",")) {
    const [first = 0, last = first] = range.split("-").map(Number);
    if (last < first || last >= MOST_IDS) return null;
    for (let id = first; id <= last; id++) ids.add(id);
  }
  return [...ids].sort((a, b) => a - b);
}

/** The value of a line `key: value`. */
export function fieldOf(text: string | null, key: string): string | null {
  const line = text?.split("\n").find((candidate) => candidate.startsWith(`${key}:`));
  return line === undefined ? null : line.slice(key.length + 1).trim();
}

/**
 * Folders, from the innermost to the outermost, that hold the limits of a controller (cpu, memory) for this process, in
 * the first version of cgroups and in the second. Limits of all of them hold.
 */
export function cgroupFolders(root: string, controller: string): readonly string[] {
  const folders: string[] = [];
  for (const line of systemText(root, "proc/self/cgroup")?.split("\n") ?? []) {
    const [, controllers = "", path = "/"] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    const mounts = controllers === "" ? [""] : [controllers, controller];
    if (controllers !== "" && !controllers.split(",").includes(controller)) continue;
    for (const mount of new Set(mounts)) folders.push(...parentsOf(join("sys/fs/cgroup", mount), path));
  }
  return folders;
}

/** Inside a container the path may be that of the host, where nothing is; the mount itself is then the container's. */
function parentsOf(mount: string, path: string): readonly string[] {
  const parts = path.split("/").filter((part) => part !== "" && part !== "..");
  return Array.from({ length: parts.length + 1 }, (_, i) => join(mount, ...parts.slice(0, parts.length - i)));
}
