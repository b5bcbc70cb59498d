/**
 * An executor with the toy model in place of ranks. It computes from the arrays of the step alone and keeps the model's
 * state in cache slots: a wrong slot, block table, position, chunk, or an array that was not written gives wrong tokens
 * or a failed assertion.
 */
import assert from "node:assert/strict";
import type { Executor } from "../../src/engine/executor.js";
import type { ModelConfig } from "../../src/models/model.js";
import type { RankReport } from "../../src/rank/model-runner.js";
import {
  OUTPUT_SAMPLE,
  OUTPUT_SCORE,
  STEP_FED,
  STEP_OUTPUTS,
  STEP_SEQUENCES,
  STEP_TOKENS,
  Step,
  type StepLimits,
  type Steps,
  stepOf,
} from "../../src/rank/step.js";
import { choose, distribution, INITIAL_STATE, likeliest, nextState } from "./toy-model.js";

export interface FakeExecutorOptions {
  readonly vocabularySize?: number;
  readonly endOfSequenceIds?: readonly number[];
  readonly blockSize?: number;
  readonly blocks?: number;
  readonly maxModelLength?: number;
  readonly limits?: Partial<StepLimits>;
  /** Default 1. */
  readonly stepsInFlight?: number;
}

/** What a step asked for. */
export interface StepRecord {
  readonly tokens: number;
  readonly sequences: number;
  readonly outputs: number;
}

const DEFAULT_LIMITS: StepLimits = {
  maxTokens: 16,
  maxSequences: 4,
  maxBlocksPerSequence: 16,
  maxOutputs: 8,
  maxLogprobs: 5,
};

/** What input arrays hold after a step: anything the engine forgets to write again shows. */
const STALE = -99;

export class FakeExecutor implements Executor {
  readonly worldSize = 1;
  readonly config: ModelConfig;
  readonly steps: Steps;
  /** The arrays of the step that runs, or ran last. */
  step: Step;
  readonly blockSize: number;
  readonly blocks: number;
  readonly maxModelLength: number;
  readonly reports: readonly RankReport[] = [
    { rank: 0, loadMs: 1, bytesRead: 2, parameterBytes: 3, kvCacheBytes: 4, verifyMs: 0, files: [] },
  ];
  /** Every step that was run. */
  readonly history: StepRecord[] = [];
  closed = 0;
  /** Runs before each step: may wait, throw, or look at the arrays. Gets the number of steps run before. */
  beforeStep: (step: number) => Promise<void> | void = () => {};
  /** Runs after each step: may spoil the results. */
  afterStep: (step: number) => void = () => {};
  readonly #states: Int32Array;
  /** Position whose state a slot holds. */
  readonly #positions: Int32Array;
  #inFlight = 0;
  #begun = 0;
  #last: Promise<void> = Promise.resolve();

  constructor(options: FakeExecutorOptions = {}) {
    const limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.blockSize = options.blockSize ?? 4;
    this.blocks = options.blocks ?? 64;
    this.maxModelLength = options.maxModelLength ?? limits.maxBlocksPerSequence * this.blockSize;
    this.config = {
      architecture: "ToyForCausalLM",
      hiddenSize: 1,
      layers: 1,
      heads: 1,
      kvHeads: 1,
      headSize: 1,
      vocabularySize: options.vocabularySize ?? 97,
      maxPositions: this.maxModelLength,
      dtype: "f32",
      endOfSequenceIds: options.endOfSequenceIds ?? [],
    };
    const first = Step.create(limits);
    this.step = first;
    const others = Array.from({ length: (options.stepsInFlight ?? 1) - 1 }, () => Step.create(limits));
    this.steps = [first, ...others];
    this.#states = new Int32Array(this.blocks * this.blockSize);
    this.#positions = new Int32Array(this.blocks * this.blockSize).fill(STALE);
    for (const step of this.steps) spoilInputs(step);
  }

  /** Steps begun and not done. */
  get inFlight(): number {
    return this.#inFlight;
  }

  execute(): Promise<void> {
    assert.equal(this.closed, 0, "a step was run on a closed executor");
    assert.ok(this.#inFlight < this.steps.length, "a step was run while all arrays were in use");
    this.#inFlight++;
    const n = this.#begun++;
    this.#last = this.#last.then(() => this.#execute(n));
    return this.#last;
  }

  async #execute(n: number): Promise<void> {
    const before = this.step;
    this.step = stepOf(this.steps, n);
    this.#feed(before);
    const { header } = this.step.views;
    const record = {
      tokens: at(header, STEP_TOKENS),
      sequences: at(header, STEP_SEQUENCES),
      outputs: at(header, STEP_OUTPUTS),
    };
    const number = this.history.length;
    this.history.push(record);
    await this.beforeStep(number);
    this.#run(record);
    spoilInputs(this.step);
    this.afterStep(number);
    this.#inFlight--;
  }

  /** Puts the tokens that the step before has chosen where they belong. */
  #feed(before: Step): void {
    const { header, tokenIds, feeds } = this.step.views;
    let fed = 0;
    for (let row = 0; row < at(header, STEP_TOKENS); row++) {
      const output = at(feeds, row);
      if (output < 0) continue;
      fed++;
      tokenIds[row] = Math.max(0, at(before.views.resultIds, output));
    }
    assert.equal(fed, at(header, STEP_FED));
  }

  close(): Promise<void> {
    this.closed++;
    return Promise.resolve();
  }

  #run({ tokens, sequences, outputs }: StepRecord): void {
    const { views, limits } = this.step;
    assert.ok(tokens > 0 && tokens <= limits.maxTokens, `a step of ${tokens} tokens`);
    assert.ok(sequences > 0 && sequences <= limits.maxSequences, `a step of ${sequences} sequences`);
    assert.ok(outputs >= 0 && outputs <= limits.maxOutputs, `a step of ${outputs} outputs`);
    assert.equal(views.queryStarts[0], 0);
    assert.equal(views.queryStarts[sequences], tokens);
    const states = new Int32Array(tokens);
    const owners = new Map<number, number>();
    for (let sequence = 0; sequence < sequences; sequence++) this.#forward(sequence, states, owners);
    for (let output = 0; output < outputs; output++) this.#output(output, states);
  }

  #forward(sequence: number, states: Int32Array, owners: Map<number, number>): void {
    const { views, limits } = this.step;
    const start = at(views.queryStarts, sequence);
    const end = at(views.queryStarts, sequence + 1);
    const contextLength = at(views.contextLengths, sequence);
    assert.ok(end > start, "a sequence without tokens");
    const blocks = Math.ceil(contextLength / this.blockSize);
    assert.ok(blocks <= limits.maxBlocksPerSequence, "a sequence with more blocks than a table holds");
    for (let i = 0; i < blocks; i++) {
      const block = at(views.blockTables, sequence * limits.maxBlocksPerSequence + i);
      assert.ok(block >= 0 && block < this.blocks, `block ${block} does not exist`);
      assert.ok(!owners.has(block), `block ${block} belongs to two places of a step`);
      owners.set(block, sequence);
    }
    for (let row = start; row < end; row++) {
      const position = contextLength - end + row;
      assert.equal(views.positions[row], position, "positions end with the context");
      const slot = this.#slotOf(sequence, position);
      assert.equal(views.slots[row], slot, "slots follow the block table");
      const tokenId = at(views.tokenIds, row);
      assert.ok(tokenId >= 0 && tokenId < this.config.vocabularySize, `token ${tokenId} does not exist`);
      const state = nextState(this.#stateBefore(sequence, position), tokenId, position);
      this.#states[slot] = state;
      this.#positions[slot] = position;
      states[row] = state;
    }
  }

  #slotOf(sequence: number, position: number): number {
    const { views, limits } = this.step;
    const index = sequence * limits.maxBlocksPerSequence + Math.floor(position / this.blockSize);
    return at(views.blockTables, index) * this.blockSize + (position % this.blockSize);
  }

  #stateBefore(sequence: number, position: number): number {
    if (position === 0) return INITIAL_STATE;
    const slot = this.#slotOf(sequence, position - 1);
    assert.equal(this.#positions[slot], position - 1, "the cache holds the position before");
    return at(this.#states, slot);
  }

  #output(output: number, states: Int32Array): void {
    const { views, limits } = this.step;
    const { vocabularySize } = this.config;
    const state = at(states, at(views.outputRows, output));
    const logprobs = distribution(state, vocabularySize);
    const mode = at(views.outputModes, output);
    assert.ok(mode === OUTPUT_SAMPLE || mode === OUTPUT_SCORE, `output mode ${mode} does not exist`);
    const id = mode === OUTPUT_SCORE ? at(views.targetIds, output) : this.#choose(output, state);
    views.resultIds[output] = id;
    const count = at(views.logprobCounts, output);
    assert.ok(count >= -1 && count <= limits.maxLogprobs, `${count} alternatives asked for`);
    if (count < 0) return;
    views.resultLogprobs[output] = at(logprobs, id);
    const columns = Math.max(1, limits.maxLogprobs);
    for (const [i, top] of likeliest(logprobs, count).entries()) {
      views.topIds[output * columns + i] = top.id;
      views.topLogprobs[output * columns + i] = top.logprob;
    }
  }

  #choose(output: number, state: number): number {
    const { views } = this.step;
    const sampling = {
      temperature: at(views.temperatures, output),
      topK: at(views.topK, output),
      topP: at(views.topP, output),
      minP: at(views.minP, output),
      seed: at(views.seeds, 2 * output),
    };
    return choose(state, this.config.vocabularySize, sampling, at(views.seeds, 2 * output + 1));
  }
}

function spoilInputs({ views }: Step): void {
  for (const array of [
    views.header,
    views.tokenIds,
    views.feeds,
    views.positions,
    views.slots,
    views.queryStarts,
    views.contextLengths,
    views.blockTables,
    views.outputRows,
    views.outputModes,
    views.targetIds,
    views.logprobCounts,
    views.temperatures,
    views.topK,
    views.topP,
    views.minP,
    views.seeds,
  ]) {
    array.fill(STALE);
  }
}

function at(values: ArrayLike<number>, index: number): number {
  const value = values[index];
  assert.ok(value !== undefined, `index ${index} of ${values.length}`);
  return value;
}
