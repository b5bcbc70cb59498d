/** shardloom itself, through its public API. */
import { type Engine, type GenerationTimings, type LaunchOptions, launch } from "../../src/index.js";
import type { BenchModel } from "../models/model-store.js";
import type { Capacity, Contestant, DecodeWork, NextToken } from "./contestant.js";
import { promptOf } from "./prompt.js";

/** How shardloom runs a model. */
export interface Setup {
  /** As it stands in tables. */
  readonly name: string;
  readonly options: Omit<LaunchOptions, "model">;
}

/** Log-probabilities asked for in `nextToken`. */
const ALTERNATIVES = 20;

export async function startShardloom(model: BenchModel, setup: Setup, capacity: Capacity): Promise<Contestant> {
  const engine = await launch({
    plugins: ["@shardloom/gguf", "@shardloom/bitsandbytes"],
    maxModelLength: capacity.contextTokens,
    maxSequences: capacity.sequences,
    kvCacheBytes: kvCacheBytes(model, capacity),
    ...model.launch,
    ...setup.options,
    model: model.path,
  });
  return new ShardloomContestant(setup.name, engine);
}

/** Of f32, the widest, with a block to spare for every sequence, on as many ranks as there may be. */
function kvCacheBytes({ shape }: BenchModel, { contextTokens, sequences }: Capacity): number {
  const bytesPerToken = 2 * 4 * shape.layers * shape.heads * shape.headSize;
  return sequences * (contextTokens + 32) * bytesPerToken;
}

class ShardloomContestant implements Contestant {
  readonly name: string;
  readonly peer = false;
  readonly #engine: Engine;

  constructor(name: string, engine: Engine) {
    this.name = name;
    this.#engine = engine;
  }

  async prefill(promptTokens: number): Promise<number> {
    const { ttftMs } = await this.#generate(promptTokens, 1, 0);
    return (promptTokens / (ttftMs ?? Number.NaN)) * 1000;
  }

  async decode({ sequences, contextTokens, tokens }: DecodeWork): Promise<number> {
    const start = performance.now();
    const all = await Promise.all(
      Array.from({ length: sequences }, (_, seed) => this.#generate(contextTokens, tokens, seed)),
    );
    const end = performance.now();
    const lastFirst = start + Math.max(...all.map(({ ttftMs }) => ttftMs ?? Number.NaN));
    if (sequences === 1) return 1000 / (all[0]?.tpotMs ?? Number.NaN);
    return ((sequences * (tokens - 1)) / (end - lastFirst)) * 1000;
  }

  async nextToken(promptTokenIds: readonly number[]): Promise<NextToken> {
    const sampling = { maxTokens: 1, ignoreEndOfSequence: true, logprobs: ALTERNATIVES, temperature: 0 };
    for await (const { logprobs } of this.#engine.generate({ promptTokenIds, sampling })) {
      const top = logprobs?.[0]?.top;
      if (top !== undefined) return top;
    }
    throw new Error("the engine gave no log-probabilities");
  }

  close(): Promise<void> {
    return this.#engine.close();
  }

  async #generate(promptTokens: number, maxTokens: number, seed: number): Promise<GenerationTimings> {
    const promptTokenIds = promptOf(promptTokens, this.#engine.config.vocabularySize, seed);
    const sampling = { maxTokens, ignoreEndOfSequence: true, temperature: 0 };
    for await (const { timings } of this.#engine.generate({ promptTokenIds, sampling })) {
      if (timings !== undefined) return timings;
    }
    throw new Error("the engine gave no timings");
  }
}
