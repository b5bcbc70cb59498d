/** Who takes part in the bench of loading. */
import { execFile, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { setupsOf } from "../contestants/line-up.js";
import { LLAMA_CPP, llamaCppStatus } from "../contestants/llama-cpp.js";
import { nodeLlamaCppStatus, startNodeLlamaCpp } from "../contestants/node-llama-cpp.js";
import type { Setup } from "../contestants/shardloom.js";
import type { BenchContext } from "../frame/bench.js";
import type { PeerStatus } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";
import { FIRST_TOKEN_CAPACITY, PROMPT_TOKENS } from "./first-token-work.js";
import type { WarmRead } from "./warm-read.js";

const run = promisify(execFile);

/** A program that hangs ends here. */
const TIMEOUT_MS = 600_000;

/** What the process of shardloom says of its first token: bytes that all ranks read, and how long the slowest took to load. */
export interface FirstToken {
  readonly bytesRead: number;
  readonly readMs: number;
}

export interface LoadSample {
  /** From the start of the process to the first token. */
  readonly firstTokenMs: number;
  /** Null for peers, who do not say. */
  readonly read: FirstToken | null;
}

/** Has the system have as much memory at hand as a model takes, for the sample that follows. */
export async function haveMemory(model: BenchModel): Promise<void> {
  const script = fileURLToPath(new URL("./memory-process.js", import.meta.url));
  await run(process.execPath, [script, `${Math.ceil(1.25 * statSync(model.path).size)}`], { timeout: TIMEOUT_MS });
}

export interface Contestant {
  readonly name: string;
  readonly peer: boolean;
  /** Loads the model, has it answer with one token, and lets go of it. */
  load(): Promise<LoadSample>;
}

/** What reading the model's file can cost at least; null where the addon is not there. Leaves the file in the page cache. */
export async function warmReadOf(model: BenchModel): Promise<WarmRead | null> {
  const script = fileURLToPath(new URL("./warm-read-process.js", import.meta.url));
  const { stdout } = await run(process.execPath, [script, model.path], { timeout: TIMEOUT_MS });
  const read: WarmRead | null = JSON.parse(stdout);
  return read;
}

export async function lineUpOf(
  context: BenchContext,
  model: BenchModel,
): Promise<{ readonly contestants: readonly Contestant[]; readonly peers: readonly PeerStatus[] }> {
  const { options } = context;
  const { peerModel = model } = model;
  const ours = setupsOf(context).map((setup) => shardloom(model, setup));
  if (!options.peers) return { contestants: ours, peers: [] };
  const peers = [nodeLlamaCppStatus(), await llamaCppStatus(options.llamaBench, peerModel)];
  const [inNode, native] = peers;
  const contestants = [...ours];
  if (inNode?.absent === null) contestants.push(nodeLlamaCpp(inNode.name, peerModel, options.threads));
  if (native?.absent === null && options.llamaBench !== null) {
    for (const mmap of [true, false]) contestants.push(llamaCpp(options.llamaBench, peerModel, options.threads, mmap));
  }
  return { contestants, peers };
}

function shardloom(model: BenchModel, { name, options, environment }: Setup): Contestant {
  return {
    name,
    peer: false,
    async load() {
      const script = fileURLToPath(new URL("./first-token-process.js", import.meta.url));
      const start = performance.now();
      const child = fork(script, [JSON.stringify(model), JSON.stringify(options)], {
        env: { ...process.env, ...environment },
        timeout: TIMEOUT_MS,
      });
      const exit = once(child, "exit");
      const message: Promise<readonly FirstToken[]> = once(child, "message");
      const ended = exit.then(() => null);
      const first = await Promise.race([message, ended]);
      const firstTokenMs = performance.now() - start;
      await exit;
      const read = first?.[0];
      if (read === undefined) throw new Error(`${name}: its process ended before the first token`);
      return { firstTokenMs, read };
    },
  };
}

function nodeLlamaCpp(name: string, model: BenchModel, threads: number): Contestant {
  return {
    name,
    peer: true,
    async load() {
      const start = performance.now();
      const contestant = await startNodeLlamaCpp(model, threads, FIRST_TOKEN_CAPACITY);
      try {
        await contestant.prefill(PROMPT_TOKENS);
        return { firstTokenMs: performance.now() - start, read: null };
      } finally {
        await contestant.close();
      }
    },
  };
}

/** One run of llama-bench (one that knows --load-mode): it loads, reads the prompt once, and says so before it cleans up. */
function llamaCpp(program: string, model: BenchModel, threads: number, mmap: boolean): Contestant {
  const name = `${LLAMA_CPP} ${mmap ? "mmap" : "no mmap"}`;
  return {
    name,
    peer: true,
    async load() {
      const prompt = ["-p", `${PROMPT_TOKENS}`, "-n", "0", "-r", "1", "--no-warmup"];
      const args = ["-m", model.path, ...prompt, "-t", `${threads}`, "-lm", mmap ? "mmap" : "none", "-o", "json"];
      const start = performance.now();
      const child = spawn(program, args, { stdio: ["ignore", "pipe", "ignore"], timeout: TIMEOUT_MS });
      const exit = once(child, "exit");
      let text = "";
      let firstTokenMs: number | null = null;
      for await (const part of child.stdout) {
        text += String(part);
        if (firstTokenMs === null && text.includes("samples_ns")) firstTokenMs = performance.now() - start;
      }
      await exit;
      if (firstTokenMs === null) throw new Error(`${name}: it ended without a result`);
      return { firstTokenMs, read: null };
    },
  };
}
