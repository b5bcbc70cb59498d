/** The process of node-llama-cpp: `MODULE MODEL THREADS`. */
import { pathToFileURL } from "node:url";
import type { Capacity, NextToken } from "./contestant.js";
import { type ServedEngine, serveEngine, type TokenCount } from "./serve-engine.js";

// What is used of node-llama-cpp, as its 3.22 declares it.

interface PeerModule {
  getLlama(options: {
    readonly build: "never";
    readonly gpu: false;
    readonly skipDownload: true;
    readonly maxThreads: number;
    readonly logLevel: "error";
  }): Promise<PeerLlama>;
}

interface PeerLlama {
  loadModel(options: { readonly modelPath: string; readonly gpuLayers: 0 }): Promise<PeerModel>;
}

interface PeerModel {
  createContext(options: {
    readonly contextSize: number;
    readonly sequences: number;
    readonly batchSize: number;
    readonly threads: { readonly ideal: number; readonly min: number };
  }): Promise<PeerContext>;
}

interface PeerContext {
  getSequence(): PeerSequence;
}

interface EvaluateOptions {
  readonly temperature: 0;
  readonly yieldEogToken: true;
}

interface PeerSequence {
  clearHistory(): Promise<void>;
  evaluate(tokens: readonly number[], options: EvaluateOptions): AsyncIterable<number>;
  evaluateWithMetadata(
    tokens: readonly number[],
    metadata: { readonly probabilities: true },
    options: EvaluateOptions,
  ): AsyncIterable<{ readonly probabilities: ReadonlyMap<number, number> }>;
}

const GREEDY: EvaluateOptions = { temperature: 0, yieldEogToken: true };
/** llama.cpp's own default; shardloom's steps hold as many. */
const BATCH_TOKENS = 512;

async function load(capacity: Capacity): Promise<ServedEngine> {
  const [, , modulePath = "", modelPath = "", givenThreads = ""] = process.argv;
  const threads = Number(givenThreads);
  const peer: PeerModule = await import(pathToFileURL(modulePath).href);
  const llama = await peer.getLlama({
    build: "never",
    gpu: false,
    skipDownload: true,
    maxThreads: threads,
    logLevel: "error",
  });
  const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
  const context = await model.createContext({
    contextSize: capacity.contextTokens,
    sequences: capacity.sequences,
    batchSize: BATCH_TOKENS,
    threads: { ideal: threads, min: threads },
  });
  const sequences = Array.from({ length: capacity.sequences }, () => context.getSequence());
  return {
    answer: (prompts) => answer(sequences.slice(0, prompts.length), prompts),
    nextToken: (promptTokenIds, count) => nextToken(sequences[0], promptTokenIds, count),
    close: async () => {},
  };
}

async function answer(
  sequences: readonly PeerSequence[],
  prompts: readonly (readonly number[])[],
): Promise<AsyncIterable<TokenCount>[]> {
  await Promise.all(sequences.map((sequence) => sequence.clearHistory()));
  return sequences.map((sequence, index) => stream(sequence, prompts[index] ?? []));
}

async function* stream(sequence: PeerSequence, prompt: readonly number[]): AsyncGenerator<TokenCount> {
  for await (const _ of sequence.evaluate(prompt, GREEDY)) yield 1;
}

async function nextToken(
  sequence: PeerSequence | undefined,
  promptTokenIds: readonly number[],
  count: number,
): Promise<NextToken> {
  if (sequence === undefined) throw new Error("expected room for one sequence at least");
  await sequence.clearHistory();
  const answers = sequence.evaluateWithMetadata(promptTokenIds, { probabilities: true }, GREEDY);
  for await (const { probabilities } of answers) {
    return [...probabilities]
      .map(([id, probability]) => ({ id, logprob: Math.log(probability) }))
      .sort((a, b) => b.logprob - a.logprob)
      .slice(0, count);
  }
  throw new Error("expected a token but received none");
}

serveEngine(load);
