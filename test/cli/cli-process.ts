/** Runs the command line as its users do: as a process of its own. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** The program, as users run it. */
export const MAIN = fileURLToPath(new URL("../../../bundle/src/lib/main.js", import.meta.url));

/** How a run ended, once the process and everything it started are gone. */
export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  /** What stdin holds. */
  readonly input?: string;
  /** Working directory; the test's own by default. */
  readonly cwd?: string;
}

export interface RunningCli {
  readonly child: ChildProcessWithoutNullStreams;
  readonly finished: Promise<Finished>;
  /** Resolves when stdout holds what `pattern` matches; rejects when it ends without. */
  printed(pattern: RegExp): Promise<void>;
}

/** Runs a command line to its end. */
export function cli(args: readonly string[], { env = {}, input = "", cwd }: RunOptions = {}): Promise<Finished> {
  const { child, finished } = startCli(args, env, cwd);
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  return finished;
}

/** Starts a command line; its stdin stays open. */
export function startCli(args: readonly string[], env: NodeJS.ProcessEnv = {}, cwd = process.cwd()): RunningCli {
  const child = spawn(process.execPath, [MAIN, ...args], { env: { ...cleanEnvironment(), ...env }, cwd });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  // "close" comes after "exit" when no descendant holds the pipes any more.
  const finished = new Promise<Finished>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr: withoutKernelWarning(stderr) }));
  });
  const printed = (pattern: RegExp): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (pattern.test(stdout)) resolve();
      };
      look();
      child.stdout.on("data", look);
      child.on("close", () => reject(new Error(`expected ${pattern} on stdout but received ${stdout}\n${stderr}`)));
    });
  return { child, finished, printed };
}

/** The tests say themselves what shardloom is told by its environment. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const settings = new Set(["SHARDLOOM_PLUGINS", "SHARDLOOM_LOG_LEVEL"]);
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !settings.has(name)));
}

/** A machine that cannot build the native addon is warned in every run; here that is no news. */
function withoutKernelWarning(stderr: string): string {
  const lines = stderr.split("\n");
  return lines.filter((line) => !(line.startsWith("{") && line.includes("reference kernels"))).join("\n");
}
