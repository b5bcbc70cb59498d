/** The side of an engine's process: answers requests, one at a time, until the bench goes. */
import type { Capacity, NextToken } from "./contestant.js";
import type { EngineAnswer, EngineRequest, TokenTimes } from "./engine-protocol.js";

/** An engine with its model in memory. */
export interface ServedEngine {
  /** Prepares `sequences` prompts whose answers are then streamed at once; each answer yields whenever it has tokens. */
  answer(prompts: readonly (readonly number[])[], tokens: number): Promise<readonly AsyncIterable<TokenCount>[]>;
  nextToken(promptTokenIds: readonly number[], count: number): Promise<NextToken>;
  close(): Promise<void>;
}

/** How many tokens have come at once. */
export type TokenCount = number;

/** Serves what `load` loads. The channel ends when the bench does, however it does, and this process with it. */
export function serveEngine(load: (capacity: Capacity) => Promise<ServedEngine>): void {
  let engine: ServedEngine | null = null;
  const reply = async (request: EngineRequest): Promise<EngineAnswer> => {
    if (request.method === "load") {
      engine = await load(request.capacity);
      return { kind: "loaded" };
    }
    if (engine === null) throw new Error("expected a model to be loaded before it is asked");
    if (request.method === "generate") {
      return { kind: "generated", times: await time(engine, request.prompts, request.tokens) };
    }
    return { kind: "nextToken", top: await engine.nextToken(request.promptTokenIds, request.count) };
  };
  process.on("message", (request: EngineRequest) => {
    reply(request).then(send, (error: unknown) => {
      send({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
    });
  });
  process.on("disconnect", () => {
    const ended = engine?.close() ?? Promise.resolve();
    ended.finally(() => process.exit());
  });
}

function send(answer: EngineAnswer): void {
  process.send?.(answer);
}

async function time(
  engine: ServedEngine,
  prompts: readonly (readonly number[])[],
  tokens: number,
): Promise<TokenTimes[]> {
  const answers = await engine.answer(prompts, tokens);
  const start = performance.now();
  return Promise.all(answers.map((answer) => timeOne(answer, tokens, start)));
}

async function timeOne(answer: AsyncIterable<TokenCount>, tokens: number, start: number): Promise<TokenTimes> {
  let firstMs = Number.NaN;
  let done = 0;
  for await (const count of answer) {
    if (done === 0) firstMs = performance.now() - start;
    done += count;
    if (done >= tokens) break;
  }
  if (done < tokens) throw new Error(`expected ${tokens} tokens but received ${done}`);
  return { firstMs, lastMs: performance.now() - start };
}
