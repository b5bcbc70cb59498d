/**
 * node-llama-cpp as it is installed in bench/peer, in a process of its own. Its binary is llama.cpp for this CPU; what a
 * Node.js program pays on top of it is part of the comparison.
 */
import { type ChildProcess, fork } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { PeerStatus } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";
import type { Capacity, Contestant, DecodeWork, NextToken } from "./contestant.js";
import type { PeerAnswer, PeerRequest, TokenTimes } from "./peer-protocol.js";
import { promptOf } from "./prompt.js";

export const NODE_LLAMA_CPP = "node-llama-cpp";

const root = fileURLToPath(new URL("../../../bench/peer/node_modules/node-llama-cpp/", import.meta.url));
const entry = `${root}dist/index.js`;

/** Log-probabilities asked for in `nextToken`. */
const ALTERNATIVES = 20;

export function nodeLlamaCppStatus(): PeerStatus {
  if (!existsSync(entry)) return { name: NODE_LLAMA_CPP, version: null, absent: "not installed: npm run bench:peer" };
  const manifest: { version: string } = JSON.parse(readFileSync(`${root}package.json`, "utf8"));
  return { name: NODE_LLAMA_CPP, version: manifest.version, absent: null };
}

/** Starts it with `threads` threads. Rejects when it is not installed or cannot load the model. */
export async function startNodeLlamaCpp(model: BenchModel, threads: number, capacity: Capacity): Promise<Contestant> {
  const child = fork(new URL("./node-llama-cpp-process.js", import.meta.url), [entry], {
    env: { ...process.env, NODE_LLAMA_CPP_SKIP_DOWNLOAD: "true" },
  });
  try {
    await ask(child, { method: "load", modelPath: model.path, threads, capacity }, "loaded");
    return new NodeLlamaCpp(child, model.shape.vocabulary);
  } catch (error) {
    child.kill();
    throw error;
  }
}

type AnswerOf<K extends PeerAnswer["kind"]> = Extract<PeerAnswer, { readonly kind: K }>;

const isOfKind = <K extends PeerAnswer["kind"]>(answer: PeerAnswer, kind: K): answer is AnswerOf<K> =>
  answer.kind === kind;

function ask<K extends PeerAnswer["kind"]>(child: ChildProcess, request: PeerRequest, kind: K): Promise<AnswerOf<K>> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null, signal: string | null): void => {
      reject(new Error(`${NODE_LLAMA_CPP}: its process ended with ${signal ?? code} before it answered`));
    };
    child.once("exit", onExit);
    child.once("message", (answer: PeerAnswer) => {
      child.off("exit", onExit);
      if (isOfKind(answer, kind)) resolve(answer);
      else reject(new Error(`${NODE_LLAMA_CPP}: ${answer.kind === "failed" ? answer.message : answer.kind}`));
    });
    child.send(request);
  });
}

class NodeLlamaCpp implements Contestant {
  readonly name = NODE_LLAMA_CPP;
  readonly peer = true;
  readonly #child: ChildProcess;
  readonly #vocabulary: number;

  constructor(child: ChildProcess, vocabulary: number) {
    this.#child = child;
    this.#vocabulary = vocabulary;
  }

  async prefill(promptTokens: number): Promise<number> {
    const [times] = await this.#generate(1, promptTokens, 1);
    return (promptTokens / (times?.firstMs ?? Number.NaN)) * 1000;
  }

  async decode({ sequences, contextTokens, tokens }: DecodeWork): Promise<number> {
    const times = await this.#generate(sequences, contextTokens, tokens);
    const lastFirst = Math.max(...times.map(({ firstMs }) => firstMs));
    const end = Math.max(...times.map(({ lastMs }) => lastMs));
    return ((sequences * (tokens - 1)) / (end - lastFirst)) * 1000;
  }

  async nextToken(promptTokenIds: readonly number[]): Promise<NextToken> {
    return (await ask(this.#child, { method: "nextToken", promptTokenIds, count: ALTERNATIVES }, "nextToken")).top;
  }

  async close(): Promise<void> {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.disconnect();
    await ended;
  }

  async #generate(sequences: number, promptTokens: number, tokens: number): Promise<readonly TokenTimes[]> {
    const prompts = Array.from({ length: sequences }, (_, seed) => promptOf(promptTokens, this.#vocabulary, seed));
    return (await ask(this.#child, { method: "generate", prompts, tokens }, "generated")).times;
  }
}
