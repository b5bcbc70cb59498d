/** The process of node-llama-cpp: a model in memory that generates when it is told to. */
import { pathToFileURL } from "node:url";
import type { Capacity } from "./contestant.js";
import type { PeerAnswer, PeerRequest, TokenTimes } from "./peer-protocol.js";

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

let sequences: PeerSequence[] = [];

async function load(modulePath: string, modelPath: string, threads: number, capacity: Capacity): Promise<PeerAnswer> {
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
  sequences = Array.from({ length: capacity.sequences }, () => context.getSequence());
  return { kind: "loaded" };
}

async function generate(prompts: readonly (readonly number[])[], tokens: number): Promise<PeerAnswer> {
  const used = sequences.slice(0, prompts.length);
  await Promise.all(used.map((sequence) => sequence.clearHistory()));
  const start = performance.now();
  const times = await Promise.all(
    used.map((sequence, index) => generateOne(sequence, prompts[index] ?? [], tokens, start)),
  );
  return { kind: "generated", times };
}

async function generateOne(
  sequence: PeerSequence,
  prompt: readonly number[],
  tokens: number,
  start: number,
): Promise<TokenTimes> {
  let firstMs = Number.NaN;
  let done = 0;
  for await (const _ of sequence.evaluate(prompt, GREEDY)) {
    done++;
    if (done === 1) firstMs = performance.now() - start;
    if (done === tokens) break;
  }
  if (done < tokens) throw new Error(`expected ${tokens} tokens but received ${done}`);
  return { firstMs, lastMs: performance.now() - start };
}

async function nextToken(promptTokenIds: readonly number[], count: number): Promise<PeerAnswer> {
  const [sequence] = sequences;
  if (sequence === undefined) throw new Error("expected a model to be loaded before tokens are asked for");
  await sequence.clearHistory();
  for await (const { probabilities } of sequence.evaluateWithMetadata(
    promptTokenIds,
    { probabilities: true },
    GREEDY,
  )) {
    const top = [...probabilities]
      .map(([id, probability]) => ({ id, logprob: Math.log(probability) }))
      .sort((a, b) => b.logprob - a.logprob)
      .slice(0, count);
    return { kind: "nextToken", top };
  }
  throw new Error("expected a token but received none");
}

function answer(request: PeerRequest): Promise<PeerAnswer> {
  const [, , modulePath = ""] = process.argv;
  switch (request.method) {
    case "load":
      return load(modulePath, request.modelPath, request.threads, request.capacity);
    case "generate":
      return generate(request.prompts, request.tokens);
    case "nextToken":
      return nextToken(request.promptTokenIds, request.count);
  }
}

// The channel ends when the bench does, however it does, and this process with it.
process.on("disconnect", () => process.exit());
process.on("message", (request: PeerRequest) => {
  answer(request).then(
    (reply) => process.send?.(reply),
    (error: unknown) => {
      const failed: PeerAnswer = { kind: "failed", message: error instanceof Error ? error.message : String(error) };
      process.send?.(failed);
    },
  );
});
