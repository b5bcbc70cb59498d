/** An engine over the fake executor, and ways to consume what it gives. */
import { createLogger } from "../../src/core/logger.js";
import { createEngine, type Engine, type EngineOptions, prepareText } from "../../src/engine/engine.js";
import type { GenerationDelta, GenerationRequest, RequestOptions } from "../../src/engine/generation.js";
import type { FinishReason } from "../../src/engine/sequence.js";
import type { ModelDescription } from "../../src/loading/model-loader.js";
import { FakeExecutor, type FakeExecutorOptions } from "./fake-executor.js";
import type { TokenizerFixture } from "./tokenizer-fixtures.js";

export interface EngineFixture {
  readonly engine: Engine;
  readonly executor: FakeExecutor;
}

export interface EngineFixtureOptions extends FakeExecutorOptions {
  readonly tokenizer?: TokenizerFixture;
  readonly chatTemplate?: string;
  readonly engine?: Pick<EngineOptions, "maxQueuedRequests" | "now">;
}

export function engineFixture(options: EngineFixtureOptions = {}): EngineFixture {
  const { tokenizer } = options;
  const executor = new FakeExecutor(tokenizer === undefined ? options : { vocabularySize: tokenizer.size, ...options });
  const description: ModelDescription = {
    config: {},
    generationConfig: null,
    tokenizer: tokenizer === undefined ? null : { tokenizer: tokenizer.tokenizer, config: tokenizer.config },
    chatTemplate: options.chatTemplate ?? null,
  };
  return {
    executor,
    engine: createEngine({
      executor,
      text: prepareText(description, executor.config),
      logger: createLogger("silent"),
      ...options.engine,
    }),
  };
}

/** All deltas of an answer. */
export async function deltasOf(
  engine: Engine,
  request: GenerationRequest,
  options: RequestOptions = {},
): Promise<GenerationDelta[]> {
  const deltas: GenerationDelta[] = [];
  for await (const delta of engine.generate(request, options)) deltas.push(delta);
  return deltas;
}

export interface Answer {
  readonly text: string;
  readonly tokenIds: number[];
  readonly finishReason: FinishReason | null | undefined;
}

/** A whole answer. */
export async function answerTo(
  engine: Engine,
  request: GenerationRequest,
  options: RequestOptions = {},
): Promise<Answer> {
  const deltas = await deltasOf(engine, request, options);
  return {
    text: deltas.map(({ text }) => text).join(""),
    tokenIds: deltas.flatMap(({ tokenIds }) => tokenIds),
    finishReason: deltas.at(-1)?.finishReason,
  };
}

/** A promise and the function that resolves it. */
export function gate(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}
