/** The process of shardloom, through its public API: `BENCH_MODEL LAUNCH_OPTIONS`, as JSON. */
import { type Engine, type LaunchOptions, launch } from "shardloom";
import type { BenchModel } from "../models/model-store.js";
import type { Capacity, NextToken } from "./contestant.js";
import { type ServedEngine, serveEngine, type TokenCount } from "./serve-engine.js";

const [, , givenModel = "{}", givenOptions = "{}"] = process.argv;
const model: BenchModel = JSON.parse(givenModel);
const options: Omit<LaunchOptions, "model"> = JSON.parse(givenOptions);

async function load(capacity: Capacity): Promise<ServedEngine> {
  const engine = await launch({
    plugins: ["@shardloom/gguf", "@shardloom/bitsandbytes"],
    maxModelLength: capacity.contextTokens,
    maxSequences: capacity.sequences,
    kvCacheBytes: kvCacheBytes(capacity),
    ...model.launch,
    ...options,
    model: model.path,
  });
  return {
    answer: async (prompts, tokens) => prompts.map((prompt) => stream(engine, prompt, tokens)),
    nextToken: (promptTokenIds, count) => nextToken(engine, promptTokenIds, count),
    close: () => engine.close(),
  };
}

/** Of f32, the widest, with a block to spare for every sequence, on as many ranks as there may be. */
function kvCacheBytes({ contextTokens, sequences }: Capacity): number {
  const { layers, heads, headSize } = model.shape;
  return sequences * (contextTokens + 32) * 2 * 4 * layers * heads * headSize;
}

async function* stream(
  engine: Engine,
  promptTokenIds: readonly number[],
  maxTokens: number,
): AsyncGenerator<TokenCount> {
  const sampling = { maxTokens, ignoreEndOfSequence: true, temperature: 0 };
  for await (const { tokenIds } of engine.generate({ promptTokenIds, sampling })) yield tokenIds.length;
}

async function nextToken(engine: Engine, promptTokenIds: readonly number[], count: number): Promise<NextToken> {
  const sampling = { maxTokens: 1, ignoreEndOfSequence: true, logprobs: count, temperature: 0 };
  for await (const { logprobs } of engine.generate({ promptTokenIds, sampling })) {
    const top = logprobs?.[0]?.top;
    if (top !== undefined) return top;
  }
  throw new Error("the engine gave no log-probabilities");
}

serveEngine(load);
