/**
 * The engine: takes requests, runs one step loop for all that are in flight, hands out answers. It knows no thread and
 * no rank; an executor runs its steps.
 *
 * The loop runs while there is work and ends when there is none: an idle engine holds no timer, does not wake up and
 * does not keep the process alive. Requests come and go at any time, also while a step runs; they take part from the
 * next step on.
 */
import { randomInt } from "node:crypto";
import { setImmediate as eventLoopTurn } from "node:timers/promises";
import { InternalError, invariant, OptionError, RequestError, reasonOf, ShardloomError } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import type { StepProfile } from "../core/step-profile.js";
import type { LoadProfile } from "../loading/load-profile.js";
import type { ModelDescription } from "../loading/model-loader.js";
import type { ModelConfig } from "../models/model.js";
import type { RankReport } from "../rank/model-runner.js";
import { type Step, stepOf } from "../rank/step.js";
import { AnswerText } from "./answer-text.js";
import { ChatTemplate } from "./chat-template.js";
import { endOfSequenceIdsOf } from "./end-of-sequence.js";
import type { Executor } from "./executor.js";
import type { GenerationDelta, GenerationRequest, RequestOptions, ScoreResult } from "./generation.js";
import { GenerationTask } from "./generation-task.js";
import { BlockPool } from "./kv-cache.js";
import { checkLength, checkTokenIds, type PromptTools, promptTokenIdsOf } from "./prompt.js";
import { resolveSampling } from "./sampling.js";
import { Scheduler, type StepPlan } from "./scheduler.js";
import { ScoringTask } from "./scoring-task.js";
import { type FinishReason, Sequence } from "./sequence.js";
import { writeStep } from "./step-writer.js";
import { StepsAhead } from "./steps-ahead.js";
import { StopStringMatcher } from "./stop-strings.js";
import type { Task } from "./task.js";
import { Tokenizer } from "./tokenizer.js";

/** Requests that may wait for their first step. */
const DEFAULT_MAX_QUEUED_REQUESTS = 1024;
/** The event loop turns after so many milliseconds at the latest, and the step that is under way then. */
const TURN_MS = 50;

export interface EngineOptions {
  readonly executor: Executor;
  /** What `prepareText` makes of the model's description. */
  readonly text: EngineText;
  readonly logger: Logger;
  /** More requests than this waiting for their first step are refused. Default 1024. */
  readonly maxQueuedRequests?: number | undefined;
  /** Says how the executor was loaded, if that was recorded. */
  readonly loadProfile?: (() => LoadProfile) | undefined;
  /** A clock in milliseconds, for timings. Default `performance.now`. */
  readonly now?: (() => number) | undefined;
}

/** What an engine is doing. */
export interface EngineStats {
  readonly waiting: number;
  readonly running: number;
  readonly blocks: number;
  readonly freeBlocks: number;
  /** Since the start: steps run, tokens computed in them, sequences preempted. */
  readonly steps: number;
  readonly tokens: number;
  readonly preemptions: number;
}

/** A step in flight. */
interface Flight {
  readonly plan: StepPlan;
  /** Holds its results once it is done. */
  readonly step: Step;
  readonly done: Promise<void>;
}

/** A request in flight. */
interface Active {
  readonly task: Task;
  /** Stops listening to the caller's signal. */
  readonly detach: () => void;
}

/** What an engine makes of a model's description: how prompts become tokens, and which ids end an answer. */
export interface EngineText {
  readonly tools: PromptTools;
  readonly endOfSequenceIds: readonly number[];
}

/**
 * Takes as long as a vocabulary is large, and needs no rank: there is time for it while ranks load. Throws CheckpointError
 * `INVALID_TOKENIZER` or `INVALID_GENERATION_CONFIG`.
 */
export function prepareText(description: ModelDescription, config: ModelConfig): EngineText {
  const { vocabularySize, endOfSequenceIds } = config;
  const { tokenizer: files, chatTemplate, generationConfig } = description;
  const tokenizer = files === null ? null : new Tokenizer(files, vocabularySize);
  const template = chatTemplate === null ? null : new ChatTemplate(chatTemplate, tokenizer?.specialTokens ?? new Map());
  return {
    tools: { tokenizer, chatTemplate: template, vocabularySize },
    endOfSequenceIds: endOfSequenceIdsOf(endOfSequenceIds, generationConfig, tokenizer),
  };
}

/**
 * An engine over an executor that is ready to run steps. Throws OptionError `INVALID_OPTION`; the executor is then left to
 * the caller.
 */
export function createEngine(options: EngineOptions): Engine {
  return new Engine(options);
}

export class Engine {
  readonly #executor: Executor;
  readonly #logger: Logger;
  readonly #loadProfile: (() => LoadProfile) | null;
  readonly #tools: PromptTools;
  readonly #endOfSequenceIds: readonly number[];
  readonly #maxQueuedRequests: number;
  readonly #now: () => number;
  readonly #pool: BlockPool;
  readonly #scheduler: Scheduler;
  readonly #ahead: StepsAhead;
  readonly #active = new Map<Sequence, Active>();
  #nextId = 0;
  #looping = false;
  /** Oldest first. */
  readonly #flights: Flight[] = [];
  /** Steps begun. */
  #begun = 0;
  #steps = 0;
  #tokens = 0;
  /** Why no request can be served any more. */
  #ended: ShardloomError | null = null;
  #closing: Promise<void> | null = null;

  /** Use `createEngine`. */
  constructor(options: EngineOptions) {
    const { executor, text } = options;
    this.#executor = executor;
    this.#logger = options.logger;
    this.#loadProfile = options.loadProfile ?? null;
    this.#tools = text.tools;
    this.#endOfSequenceIds = text.endOfSequenceIds;
    this.#maxQueuedRequests = checkQueueSize(options.maxQueuedRequests ?? DEFAULT_MAX_QUEUED_REQUESTS);
    this.#now = options.now ?? (() => performance.now());
    this.#pool = new BlockPool(executor.blocks, executor.blockSize);
    this.#scheduler = new Scheduler(executor.steps[0].limits, this.#pool, executor.steps.length);
    this.#ahead = new StepsAhead(executor.steps.length, this.#now);
  }

  get config(): ModelConfig {
    return this.#executor.config;
  }

  get worldSize(): number {
    return this.#executor.worldSize;
  }

  /** Loading, rank by rank. */
  get reports(): readonly RankReport[] {
    return this.#executor.reports;
  }

  /** Where the time of loading went; null unless `loadProfile` was asked for. */
  get loadProfile(): LoadProfile | null {
    return this.#loadProfile?.() ?? null;
  }

  /** Null where the model has none. */
  get tokenizer(): Tokenizer | null {
    return this.#tools.tokenizer;
  }

  /** Most tokens of a prompt and its answer: what the model was made for, and the KV cache holds. */
  get contextLength(): number {
    return Math.min(this.#executor.maxModelLength, this.#scheduler.capacity);
  }

  get stats(): EngineStats {
    return {
      waiting: this.#scheduler.waiting,
      running: this.#scheduler.running,
      blocks: this.#pool.blocks,
      freeBlocks: this.#pool.freeBlocks,
      steps: this.#steps,
      tokens: this.#tokens,
      preemptions: this.#scheduler.preemptions,
    };
  }

  /**
   * Where the time of all steps so far went, rank by rank; null unless the engine was launched with `profileSteps`. Exact
   * while no request is in flight.
   */
  stepProfile(): StepProfile | null {
    return this.#executor.stepProfile?.() ?? null;
  }

  /**
   * Generates the answer to a request, delta by delta. The request starts when the first delta is asked for; it ends,
   * and everything it held is free, with the last delta, when the caller leaves the loop, or when `signal` is aborted.
   * An aborted request ends with a delta whose `finishReason` is "abort".
   *
   * Throws, at the first delta, OptionError for a wrong request (`INVALID_PROMPT`, `EMPTY_PROMPT`, `INVALID_TOKEN_ID`,
   * `INVALID_MESSAGES`, `INVALID_SAMPLING_OPTION`), UnsupportedError `NO_TOKENIZER` or `NO_CHAT_TEMPLATE`, and
   * RequestError `PROMPT_TOO_LONG`, `CHAT_TEMPLATE_FAILED` or `QUEUE_FULL`, CheckpointError `INVALID_CHAT_TEMPLATE`; at
   * any delta RankError or CollectiveError when a rank fails, RankError `NON_FINITE_LOGITS`, and RequestError
   * `ENGINE_CLOSED`.
   */
  async *generate(
    request: GenerationRequest,
    options: RequestOptions = {},
  ): AsyncGenerator<GenerationDelta, void, undefined> {
    this.#checkOpen();
    const task = this.#createGeneration(request);
    this.#submit(task, options.signal);
    try {
      for (;;) {
        const delta = await task.next();
        yield delta;
        if (delta.finishReason !== null) return;
      }
    } finally {
      this.#finish(task.sequence, "abort");
    }
  }

  /**
   * How likely the model finds a text: the negative log-likelihood of every token but the first, given all before it,
   * in one window. Throws OptionError `EMPTY_PROMPT` or `INVALID_TOKEN_ID`, RequestError `PROMPT_TOO_LONG`,
   * `QUEUE_FULL`, `REQUEST_ABORTED` or `ENGINE_CLOSED`, and what a failing rank throws.
   */
  async score(tokenIds: readonly number[], options: RequestOptions = {}): Promise<ScoreResult> {
    this.#checkOpen();
    const ids = checkTokenIds(tokenIds, this.config.vocabularySize, "tokenIds");
    if (ids.length < 2) {
      throw new OptionError("EMPTY_PROMPT", "expected at least 2 token ids to score but received 1", {
        option: "tokenIds",
        expected: 2,
        received: 1,
      });
    }
    checkLength(ids.length, this.contextLength, this.contextLength);
    const sequence = new Sequence(this.#nextId++, { kind: "score" }, ids);
    return new Promise((resolve, reject) => {
      this.#submit(new ScoringTask(sequence, { resolve, reject }), options.signal);
    });
  }

  /** Ends every request in flight with RequestError `ENGINE_CLOSED` and closes the executor. May be called again. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  #createGeneration(request: GenerationRequest): GenerationTask {
    const startedAt = this.#now();
    const { tokenizer, vocabularySize } = this.#tools;
    const promptTokenIds = promptTokenIdsOf(request, this.#tools);
    // There must be room for at least one token of answer.
    checkLength(promptTokenIds.length, this.contextLength - 1, this.contextLength);
    const { maxLogprobs } = this.#executor.steps[0].limits;
    const sampling = resolveSampling(request.sampling ?? {}, {
      vocabularySize,
      maxLogprobs,
      room: this.contextLength - promptTokenIds.length,
      endOfSequenceIds: this.#endOfSequenceIds,
      hasTokenizer: tokenizer !== null,
      drawSeed: () => randomInt(2 ** 32),
    });
    const { skipSpecialTokens } = sampling;
    const detokenizer = tokenizer?.createDetokenizer(promptTokenIds, { skipSpecialTokens }) ?? null;
    return new GenerationTask({
      sequence: new Sequence(this.#nextId++, { kind: "generate", sampling }, promptTokenIds),
      sampling,
      promptTokenIds,
      text: new AnswerText(detokenizer, new StopStringMatcher(sampling.stop, sampling.includeStopString)),
      logprobColumns: Math.max(1, maxLogprobs),
      startedAt,
      now: this.#now,
    });
  }

  #submit(task: Task, signal: AbortSignal | undefined): void {
    if (signal?.aborted === true) {
      task.abort();
      return;
    }
    if (this.#scheduler.waiting >= this.#maxQueuedRequests) {
      throw new RequestError(
        "QUEUE_FULL",
        `expected at most ${this.#maxQueuedRequests} requests waiting but received one more`,
        { expected: this.#maxQueuedRequests },
      );
    }
    const onAbort = (): void => {
      if (this.#finish(task.sequence, "abort")) task.abort();
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    const detach = (): void => signal?.removeEventListener("abort", onAbort);
    this.#active.set(task.sequence, { task, detach });
    this.#scheduler.add(task.sequence);
    this.#wake();
  }

  /** Forgets a request and frees what it held; false if it had ended before. */
  #finish(sequence: Sequence, reason: FinishReason): boolean {
    const active = this.#active.get(sequence);
    if (active === undefined) return false;
    this.#active.delete(sequence);
    active.detach();
    this.#scheduler.finish(sequence, reason);
    return true;
  }

  #wake(): void {
    if (this.#looping) return;
    this.#looping = true;
    void this.#loop();
  }

  /** Never rejects: whatever goes wrong is told to every request. */
  async #loop(): Promise<void> {
    let turnedAt = Number.NEGATIVE_INFINITY;
    try {
      for (;;) {
        this.#beginSteps();
        const { awaited } = this.#ahead;
        if (awaited === 0) break;
        await this.#flights[awaited - 1]?.done;
        const landed = this.#flights.splice(0, awaited);
        this.#ahead.taken(landed);
        for (const flight of landed) this.#acceptAll(flight);
        // Timers, signals and sockets get their turn whatever the executor does. Where it waits they have had it, mostly.
        if (performance.now() - turnedAt < TURN_MS) continue;
        await eventLoopTurn();
        turnedAt = performance.now();
      }
    } catch (error) {
      this.#end(error instanceof ShardloomError ? error : unexpected(error));
    } finally {
      this.#looping = false;
    }
  }

  /** Has as many steps in flight as the executor takes: ranks need not wait for what is done here with the results. */
  #beginSteps(): void {
    const { steps, blockSize } = this.#executor;
    while (this.#ahead.room && this.#scheduler.hasWork) {
      const plan = this.#scheduler.schedule();
      const step = stepOf(steps, this.#begun);
      if (plan.tokens > 0) {
        writeStep(step, plan, blockSize);
        const done = this.#executor.execute();
        // Whoever waits for it is told; nobody does once a step before it has failed.
        done.catch(() => {});
        this.#flights.push({ plan, step, done });
        this.#ahead.begun(plan);
        this.#begun++;
      }
      this.#scheduler.advance();
      if (plan.tokens > 0) continue;
      invariant(this.#flights.length > 0, "a step was planned that computes nothing");
      return;
    }
  }

  #acceptAll({ plan, step }: Flight): void {
    this.#steps++;
    this.#tokens += plan.tokens;
    for (const [i, sequence] of plan.sequences.entries()) {
      const outputs = plan.outputCounts[i] ?? 0;
      if (outputs > 0) this.#accept(sequence, step, plan.firstOutputs[i] ?? 0, outputs);
    }
  }

  #accept(sequence: Sequence, step: Step, firstOutput: number, outputs: number): void {
    const active = this.#active.get(sequence);
    // Ended while the step ran, or with the step before.
    if (active === undefined) return;
    try {
      const reason = active.task.accept(step.views, firstOutput, outputs);
      if (reason !== null) this.#finish(sequence, reason);
    } catch (error) {
      this.#finish(sequence, "abort");
      active.task.fail(error instanceof ShardloomError ? error : unexpected(error));
    }
  }

  /** Ends all requests, now and later, with `error`. */
  #end(error: ShardloomError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    if (error.code !== "ENGINE_CLOSED") this.#logger.error({ err: error }, "the engine cannot go on");
    for (const [sequence, { task }] of [...this.#active]) {
      this.#finish(sequence, "abort");
      task.fail(error);
    }
  }

  async #close(): Promise<void> {
    this.#end(new RequestError("ENGINE_CLOSED", "the engine was closed"));
    await this.#executor.close();
  }

  #checkOpen(): void {
    if (this.#ended !== null) throw this.#ended;
  }
}

function checkQueueSize(size: number): number {
  if (Number.isInteger(size) && size >= 1) return size;
  throw new OptionError(
    "INVALID_OPTION",
    `expected maxQueuedRequests to be a whole number of at least 1 but received ${size}`,
    { option: "maxQueuedRequests", expected: ">= 1", received: String(size) },
  );
}

function unexpected(error: unknown): InternalError {
  return new InternalError(reasonOf(error), {}, { cause: error });
}
