/** Who takes part in the bench of loading. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { launch } from "../../src/index.js";
import type { Capacity } from "../contestants/contestant.js";
import { setupsOf } from "../contestants/line-up.js";
import { LLAMA_CPP, llamaCppStatus } from "../contestants/llama-cpp.js";
import { nodeLlamaCppStatus, startNodeLlamaCpp } from "../contestants/node-llama-cpp.js";
import { promptOf } from "../contestants/prompt.js";
import type { Setup } from "../contestants/shardloom.js";
import type { BenchContext } from "../frame/bench.js";
import type { PeerStatus } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";

const run = promisify(execFile);

/** Enough for a short prompt and one token. */
export const FIRST_TOKEN_CAPACITY: Capacity = { contextTokens: 64, sequences: 1 };
const PROMPT_TOKENS = 8;
/** A program that hangs ends here. */
const TIMEOUT_MS = 600_000;

export interface LoadSample {
  /** From the call, or the start of the process, to the first token. */
  readonly firstTokenMs: number;
  /** Bytes that all ranks read, and how long the slowest took to load; null for peers, who do not say. */
  readonly bytesRead: number;
  readonly readMs: number | null;
}

export interface Contestant {
  readonly name: string;
  readonly peer: boolean;
  /** Loads the model, has it answer with one token, and lets go of it. */
  load(): Promise<LoadSample>;
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

function shardloom(model: BenchModel, setup: Setup): Contestant {
  return {
    name: setup.name,
    peer: false,
    async load() {
      const start = performance.now();
      const engine = await launch({
        plugins: ["@shardloom/gguf", "@shardloom/bitsandbytes"],
        maxModelLength: FIRST_TOKEN_CAPACITY.contextTokens,
        maxSequences: FIRST_TOKEN_CAPACITY.sequences,
        ...model.launch,
        ...setup.options,
        model: model.path,
      });
      try {
        const promptTokenIds = promptOf(PROMPT_TOKENS, engine.config.vocabularySize, 0);
        for await (const _ of engine.generate({ promptTokenIds, sampling: { maxTokens: 1, temperature: 0 } }));
        const firstTokenMs = performance.now() - start;
        const bytesRead = engine.reports.reduce((sum, report) => sum + report.bytesRead, 0);
        const readMs = Math.max(...engine.reports.map(({ loadMs }) => loadMs));
        return { firstTokenMs, bytesRead, readMs };
      } finally {
        await engine.close();
      }
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
        return { firstTokenMs: performance.now() - start, bytesRead: 0, readMs: null };
      } finally {
        await contestant.close();
      }
    },
  };
}

/** One run of llama-bench (one that knows --load-mode): a process that loads, reads the prompt once, and ends. */
function llamaCpp(program: string, model: BenchModel, threads: number, mmap: boolean): Contestant {
  return {
    name: `${LLAMA_CPP} ${mmap ? "mmap" : "no mmap"}`,
    peer: true,
    async load() {
      const prompt = ["-p", `${PROMPT_TOKENS}`, "-n", "0", "-r", "1", "--no-warmup"];
      const args = ["-m", model.path, ...prompt, "-t", `${threads}`, "-lm", mmap ? "mmap" : "none", "-o", "json"];
      const start = performance.now();
      await run(program, args, { timeout: TIMEOUT_MS });
      return { firstTokenMs: performance.now() - start, bytesRead: 0, readMs: null };
    },
  };
}
