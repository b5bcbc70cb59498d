/** A contestant in a process of its own, so that none shares memory, threads or CPUs' affinities with another. */
import { type ChildProcess, fork } from "node:child_process";
import type { Capacity, Contestant, DecodeWork, NextToken } from "./contestant.js";
import type { EngineAnswer, EngineRequest, TokenTimes } from "./engine-protocol.js";
import { promptOf } from "./prompt.js";

export interface ProcessOptions {
  readonly name: string;
  /** Whether it is a peer. */
  readonly peer: boolean;
  /** Script that serves requests (serve-engine.ts), and its arguments. */
  readonly script: URL;
  readonly args: readonly string[];
  /** Added to this process's environment. */
  readonly environment?: NodeJS.ProcessEnv;
  /** Of the model, for prompts. */
  readonly vocabulary: number;
  readonly capacity: Capacity;
}

/** Log-probabilities asked for in `nextToken`. */
const ALTERNATIVES = 20;

/** Starts the process and has it load its model. Rejects when it cannot; the process has ended then. */
export async function startProcess(options: ProcessOptions): Promise<Contestant> {
  const { name, script, args, environment, capacity } = options;
  const child = fork(script, [...args], { env: { ...process.env, ...environment } });
  try {
    await ask(child, name, { method: "load", capacity }, "loaded");
    return new ProcessContestant(child, options);
  } catch (error) {
    child.kill();
    throw error;
  }
}

type AnswerOf<K extends EngineAnswer["kind"]> = Extract<EngineAnswer, { readonly kind: K }>;

const isOfKind = <K extends EngineAnswer["kind"]>(answer: EngineAnswer, kind: K): answer is AnswerOf<K> =>
  answer.kind === kind;

function ask<K extends EngineAnswer["kind"]>(
  child: ChildProcess,
  name: string,
  request: EngineRequest,
  kind: K,
): Promise<AnswerOf<K>> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null, signal: string | null): void => {
      reject(new Error(`${name}: its process ended with ${signal ?? code} before it answered`));
    };
    child.once("exit", onExit);
    child.once("message", (answer: EngineAnswer) => {
      child.off("exit", onExit);
      if (isOfKind(answer, kind)) resolve(answer);
      else reject(new Error(`${name}: ${answer.kind === "failed" ? answer.message : answer.kind}`));
    });
    child.send(request);
  });
}

class ProcessContestant implements Contestant {
  readonly name: string;
  readonly peer: boolean;
  readonly #child: ChildProcess;
  readonly #vocabulary: number;

  constructor(child: ChildProcess, { name, peer, vocabulary }: ProcessOptions) {
    this.name = name;
    this.peer = peer;
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
    const request = { method: "nextToken", promptTokenIds, count: ALTERNATIVES } as const;
    return (await ask(this.#child, this.name, request, "nextToken")).top;
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
    return (await ask(this.#child, this.name, { method: "generate", prompts, tokens }, "generated")).times;
  }
}
