// Builds the native addon with cmake-js against node-api-headers; nothing is downloaded.
//   --optional        a failed build is a warning, not an error: the reference kernels run instead
//   --if-stale        do nothing when the addon is newer than every source
//   --sanitize LIST   an addon with sanitizers (address,undefined or thread) in a directory of its own; see sanitize.mjs
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync, utimesSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({
  options: {
    optional: { type: "boolean", default: false },
    "if-stale": { type: "boolean", default: false },
    sanitize: { type: "string", default: "" },
  },
});

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const directory = join(root, buildDirectory(options.sanitize));
const addon = join(directory, "Release", "shardloom_native.node");

function buildDirectory(sanitize) {
  if (sanitize === "") return "build";
  return sanitize.split(",").includes("thread") ? "build-tsan" : "build-asan";
}

/** Newest modification time of the sources below a path, in milliseconds. */
function newest(path) {
  const stats = statSync(path);
  if (stats.isDirectory()) return Math.max(0, ...readdirSync(path).map((name) => newest(join(path, name))));
  return /\.(cc|h|txt)$/.test(path) ? stats.mtimeMs : 0;
}

function stale() {
  if (!existsSync(addon)) return true;
  const built = statSync(addon).mtimeMs;
  return newest(join(root, "native")) > built || newest(join(root, "CMakeLists.txt")) > built;
}

function fail(reason) {
  if (!options.optional) {
    console.error(`shardloom: ${reason}`);
    process.exit(1);
  }
  console.warn(`shardloom: warning: ${reason}; the slow reference kernels will be used`);
  process.exit(0);
}

if (process.env.SHARDLOOM_SKIP_NATIVE === "1") fail("the native addon is not built (SHARDLOOM_SKIP_NATIVE=1)");
if (options["if-stale"] && !stale()) process.exit(0);

const require = createRequire(import.meta.url);
let cmakeJs;
try {
  cmakeJs = require.resolve("cmake-js/bin/cmake-js");
} catch {
  fail("cmake-js is not installed, so the native addon cannot be built");
}
// Always passed, so that a cached configuration never decides.
const sanitize = `--CDSHARDLOOM_SANITIZE=${options.sanitize}`;
const args = ["compile", "--directory", root, "--out", directory, "--parallel", `${availableParallelism()}`, sanitize];
const result = spawnSync(process.execPath, [cmakeJs, ...args], {
  cwd: root,
  encoding: "utf8",
  maxBuffer: 64 * 1024 * 1024,
});
if (result.status !== 0 || !existsSync(addon)) {
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}`.trim().split("\n").slice(-30).join("\n");
  console.warn(output);
  fail("the native addon could not be built (a C++20 compiler and cmake are needed; their output is above)");
}
// A source that changed without a consequence leaves the addon as it was; it is up to date all the same.
const now = new Date();
utimesSync(addon, now, now);
