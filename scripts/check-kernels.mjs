// Builds the program native/test/kernels_check.cc and runs it: it holds the kernels of every instruction set that a CPU has
// to the portable ones, and needs no Node.js.
//   node scripts/check-kernels.mjs [--cases N] [--seed N]            on this machine
//   node scripts/check-kernels.mjs --arm64 [--cases N] [--seed N]    built for Arm64 Linux, on CPUs that qemu emulates
// Arm64 needs Debian's packages g++-aarch64-linux-gnu, qemu-user and cmake. Ends with 77, after a line that says why, where
// something that it needs is missing.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const SKIPPED = 77;
/** With matrix products, with dot products only, and with the base of the architecture only. */
const ARM64_CPUS = ["max", "neoverse-n1", "cortex-a53"];
const ARM64_LIBRARIES = "/usr/aarch64-linux-gnu";

const { values: options } = parseArgs({
  options: {
    arm64: { type: "boolean", default: false },
    cases: { type: "string", default: "300" },
    seed: { type: "string", default: "1" },
  },
});

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const directory = join(root, options.arm64 ? "build-arm64" : "build");

function skip(reason) {
  console.log(`skipped: ${reason}`);
  process.exit(SKIPPED);
}

function need(command, debianPackage) {
  const { error } = spawnSync(command, ["--version"], { stdio: "ignore" });
  if (error !== undefined) skip(`expected ${command} (Debian package ${debianPackage}) but found none`);
}

/** Runs a command, whose output is shown only if it fails. */
function quietly(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: root, encoding: "utf8" });
  if (status === 0) return;
  console.error(error?.message ?? `${stdout}${stderr}`);
  process.exit(1);
}

function run(title, command, args) {
  console.log(title);
  const { status, signal, error } = spawnSync(command, args, { stdio: "inherit" });
  if (error !== undefined) console.error(error.message);
  if (signal !== null) console.error(`${command} was ended by ${signal}`);
  if (status !== 0) process.exit(status ?? 1);
}

if (!existsSync(join(root, "native", "test", "kernels_check.cc"))) skip("the published package has no native/test");
need("cmake", "cmake");
if (options.arm64) {
  need("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu");
  need("qemu-aarch64", "qemu-user");
  const toolchain = join(root, "native", "toolchains", "aarch64-linux-gnu.cmake");
  const headers = createRequire(import.meta.url)("node-api-headers").include_dir;
  const definitions = [
    "-DCMAKE_BUILD_TYPE=Release",
    `-DCMAKE_TOOLCHAIN_FILE=${toolchain}`,
    `-DCMAKE_JS_INC=${headers}`,
  ];
  quietly("cmake", ["-S", root, "-B", directory, ...definitions]);
} else if (!existsSync(join(directory, "CMakeCache.txt"))) {
  skip("the native addon was never built here");
}
// For Arm64 the addon as well, which nothing else would compile.
const targets = options.arm64 ? ["kernels_check", "shardloom_native"] : ["kernels_check"];
const parallel = ["--parallel", `${availableParallelism()}`];
quietly("cmake", ["--build", directory, "--config", "Release", ...parallel, "--target", ...targets]);

const program = [directory, join(directory, "Release")]
  .flatMap((folder) => ["kernels_check", "kernels_check.exe"].map((name) => join(folder, name)))
  .find((path) => existsSync(path));
if (program === undefined) throw new Error(`expected kernels_check below ${directory} but found none`);
const args = ["--cases", options.cases, "--seed", options.seed];
if (options.arm64) {
  for (const cpu of ARM64_CPUS) {
    run(`Arm64, qemu's ${cpu}:`, "qemu-aarch64", ["-cpu", cpu, "-L", ARM64_LIBRARIES, program, ...args]);
  }
} else {
  run("This machine:", program, args);
}
