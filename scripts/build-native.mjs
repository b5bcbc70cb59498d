// Builds the native addon with cmake-js against node-api-headers; nothing is downloaded.
//   --optional   a failed build is a warning, not an error: the reference kernels run instead
//   --if-stale   do nothing when the addon is newer than every source
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const addon = join(root, "build", "Release", "shardloom_native.node");
const optional = process.argv.includes("--optional");

/** Newest modification time below a path, in milliseconds. */
function newest(path) {
  const stats = statSync(path);
  if (!stats.isDirectory()) return stats.mtimeMs;
  return Math.max(stats.mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))));
}

function stale() {
  if (!existsSync(addon)) return true;
  const built = statSync(addon).mtimeMs;
  return newest(join(root, "native")) > built || newest(join(root, "CMakeLists.txt")) > built;
}

function fail(reason) {
  if (!optional) {
    console.error(`shardloom: ${reason}`);
    process.exit(1);
  }
  console.warn(`shardloom: warning: ${reason}; the slow reference kernels will be used`);
  process.exit(0);
}

if (process.env.SHARDLOOM_SKIP_NATIVE === "1") fail("the native addon is not built (SHARDLOOM_SKIP_NATIVE=1)");
if (process.argv.includes("--if-stale") && !stale()) process.exit(0);

const require = createRequire(import.meta.url);
let cmakeJs;
try {
  cmakeJs = require.resolve("cmake-js/bin/cmake-js");
} catch {
  fail("cmake-js is not installed, so the native addon cannot be built");
}
const result = spawnSync(process.execPath, [cmakeJs, "compile", "--directory", root, "--out", join(root, "build")], {
  cwd: root,
  encoding: "utf8",
  maxBuffer: 64 * 1024 * 1024,
});
if (result.status !== 0) {
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}`.trim().split("\n").slice(-30).join("\n");
  console.warn(output);
  fail("the native addon could not be built (a C++20 compiler and cmake are needed; their output is above)");
}
