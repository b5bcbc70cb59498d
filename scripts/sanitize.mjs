// Runs native code under sanitizers, and fails on any report.
//   node scripts/sanitize.mjs address    memory errors and undefined behaviour: the tests of kernels, collectives and of
//                                        what reads files, on an addon built with sanitizers
//   node scripts/sanitize.mjs thread     data races: the programs native/test/*_stress.cc; nothing else is shared by
//                                        threads
// Needs GCC on Linux. Node.js itself is not instrumented: the runtime of the address sanitizer is preloaded into it; the
// thread sanitizer, which cannot see the locks inside Node.js and reports races there, gets a program without it.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const kind = process.argv[2] ?? "address";
if (kind !== "address" && kind !== "thread") {
  console.error(`expected address or thread but received ${kind}`);
  process.exit(2);
}

// Without the configuration file, whose specs would be added to these.
const mochaArguments = [
  ...["--no-config", "--forbid-only", "--timeout", "600000"],
  ...["dist/test/kernels/**/*.test.js", "dist/test/collectives/**/*.test.js"],
  // Files are read by the addon too, on all threads of a rank.
  ...["block-layout", "random-access-file"].map((name) => `dist/test/checkpoint/${name}.test.js`),
];

function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
  if (error !== undefined) console.error(`${command}: ${error.message}`);
  return status ?? 1;
}

function runOrExit(command, args) {
  const status = run(command, args);
  if (status !== 0) process.exit(status);
}

/** Path of a library that belongs to the compiler which cmake chose. */
function runtimeLibrary(name) {
  const cache = readFileSync(join(root, "build-asan", "CMakeCache.txt"), "utf8");
  const compiler = /^CMAKE_CXX_COMPILER:\w+=(.+)$/m.exec(cache)?.[1] ?? "g++";
  const path = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" }).stdout?.trim() ?? "";
  if (path !== name && existsSync(path)) return path;
  console.error(`expected the GNU C++ compiler, which has ${name}, but cmake chose ${compiler}`);
  process.exit(1);
}

const reports = mkdtempSync(join(tmpdir(), "shardloom-sanitize-"));
if (kind === "thread") {
  const stress = (name, sources) => {
    const program = join(reports, name);
    const paths = [`test/${name}.cc`, ...sources].map((source) => join(root, "native", source));
    // Fences are not understood by the sanitizer. What they order is who wakes whom, not data.
    const options = ["-std=c++20", "-O1", "-g", "-Wno-tsan", "-fsanitize=thread", "-pthread"];
    runOrExit("g++", [...options, ...paths, "-o", program]);
    return run(program, [], { env: { ...process.env, TSAN_OPTIONS: "exitcode=66" } });
  };
  const failed =
    stress("collectives_stress", [
      "collectives.cc",
      "collectives_payload.cc",
      "collectives_probe.cc",
      "waiting.cc",
      "kernels/rank_sum_portable.cc",
    ]) || stress("thread_pool_stress", ["thread_pool.cc", "posted_number.cc", "waiting.cc"]);
  rmSync(reports, { recursive: true });
  process.exit(failed);
}

runOrExit("npm", ["run", "--silent", "build:ts"]);
runOrExit(process.execPath, [join(root, "scripts", "build-native.mjs"), "--sanitize", "address,undefined"]);

// Node.js never frees what lives as long as the process, so leaks are not looked for. Reports go to files, one a
// process, for a test may start processes whose output it keeps to itself.
const sanitizerOptions = `detect_leaks=0:abort_on_error=0:exitcode=66:log_path=${join(reports, "report")}`;
const status = run(process.execPath, [join(root, "node_modules", "mocha", "bin", "mocha.js"), ...mochaArguments], {
  env: {
    ...process.env,
    LD_PRELOAD: runtimeLibrary("libasan.so"),
    SHARDLOOM_NATIVE_ADDON: join(root, "build-asan", "Release", "shardloom_native.node"),
    SHARDLOOM_SANITIZED: "address",
    ASAN_OPTIONS: sanitizerOptions,
    UBSAN_OPTIONS: `print_stacktrace=1:${sanitizerOptions}`,
  },
});
const files = readdirSync(reports);
for (const file of files) console.error(readFileSync(join(reports, file), "utf8"));
rmSync(reports, { recursive: true });
if (files.length > 0) console.error(`${files.length} processes were reported on by a sanitizer`);
process.exit(files.length > 0 ? 66 : status);
