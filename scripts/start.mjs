// npm start: builds, fetches the sample model, and lets it answer on two ranks. Arguments go on to `shardloom generate`:
//   npm start -- --prompt "Once upon a time" --tp 3
import { spawn, spawnSync } from "node:child_process";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { sampleModel } from "./sample-model.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const cli = fileURLToPath(new URL("../bundle/src/lib/main.js", import.meta.url));
const args = process.argv.slice(2);

/** What is asked where the caller asks nothing. */
const QUESTION = "Why is the sky blue? Explain it to a curious child.";

/** Whether one of these options is among the arguments, as `--name value` or `--name=value`. */
function given(...names) {
  return args.some((arg) => names.some((name) => arg === name || arg.startsWith(`${name}=`)));
}

function build() {
  // npm tells its scripts where it is; its launcher on Windows is a batch file, which only a shell can start.
  const npm = process.env.npm_execpath;
  const [command, ...prefix] = npm?.endsWith("js") ? [process.execPath, npm] : ["npm"];
  const options = { cwd: root, stdio: ["ignore", 2, 2], shell: command === "npm" && process.platform === "win32" };
  const { status, error } = spawnSync(command, [...prefix, "run", "--silent", "build"], options);
  if (status !== 0) throw new Error(`the build failed${error === undefined ? "" : `: ${error.message}`}`);
}

async function defaults() {
  const added = [];
  if (!given("--model")) added.push("--model", await sampleModel((line) => console.error(`shardloom: ${line}`)));
  if (!given("--tp")) added.push("--tp", "2");
  if (!given("--prompt", "--prompt-ids", "--chat")) added.push("--chat", QUESTION);
  if (!given("--max-tokens")) added.push("--max-tokens", "128");
  return added;
}

/** Runs the command and ends as it ends: with its exit code, or by the signal that ended it. */
function become(command, commandArgs) {
  const child = spawn(command, commandArgs, { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => {
      // Ctrl-C reaches every process of the terminal by itself; a second one would mean something else to the child.
      if (signal !== "SIGINT" || !process.stdin.isTTY) child.kill(signal);
    });
  }
  child.on("error", (error) => fail(error));
  child.on("exit", (code, signal) => process.exit(code ?? 128 + (constants.signals[signal] ?? 0)));
}

function fail(error) {
  console.error(`shardloom: ${error.message}`);
  process.exit(1);
}

try {
  build();
  const help = given("--help", "-h");
  become(process.execPath, [cli, "generate", ...(help ? [] : await defaults()), ...args]);
} catch (error) {
  fail(error);
}
