/**
 * A step: what the engine asks of every rank between two wake-ups, as arrays in shared memory. The engine writes the
 * input arrays, all ranks read them, rank 0 writes the result arrays. Nothing in it is an object or a string, so a step
 * costs no allocation and no message. Who may touch it when is the business of step-channel.ts.
 *
 * Where several steps may be in flight they have arrays of their own, used in turn.
 */
import type { ArenaHandle } from "../core/arena.js";
import { Arena } from "../core/arena.js";
import type { DType } from "../core/dtype.js";
import { f32Of, i32Of, type Tensor } from "../core/tensor.js";

/** Sizes that the arrays of a step are made for. */
export interface StepLimits {
  /** Tokens in one step, over all sequences. */
  readonly maxTokens: number;
  /** Sequences in one step. */
  readonly maxSequences: number;
  /** Blocks of KV cache one sequence may hold. */
  readonly maxBlocksPerSequence: number;
  /** Rows of logits asked for in one step. */
  readonly maxOutputs: number;
  /** Most alternatives reported per output, the chosen token not counted. */
  readonly maxLogprobs: number;
}

/** What to do with the logits of an output row. */
export const OUTPUT_SAMPLE = 0;
/** Report the log-probability of `targetIds` instead of sampling. */
export const OUTPUT_SCORE = 1;

/** Fields of `Step.header`. */
export const STEP_TOKENS = 0;
export const STEP_SEQUENCES = 1;
export const STEP_OUTPUTS = 2;
/** Rows whose token the step before chooses. */
export const STEP_FED = 3;
const HEADER_FIELDS = 16;

/** Tensors of a step; shapes in terms of StepLimits. */
export interface StepTensors {
  /** i32 `[16]`, see the STEP_ constants. */
  readonly header: Tensor;
  /** i32 `[maxTokens]` */
  readonly tokenIds: Tensor;
  /**
   * i32 `[maxTokens]`: the output of the step before that chooses this row's token, so that a step can be written before
   * its tokens are known; -1 where `tokenIds` holds it.
   */
  readonly feeds: Tensor;
  /** i32 `[maxTokens]`: position of each token in its sequence. */
  readonly positions: Tensor;
  /** i32 `[maxTokens]`: cache slot (block * blockSize + offset) each token's keys and values go to. */
  readonly slots: Tensor;
  /** i32 `[maxSequences + 1]`: rows of sequence s are `[queryStarts[s], queryStarts[s + 1])`. */
  readonly queryStarts: Tensor;
  /** i32 `[maxSequences]`: positions in the cache once this step's tokens are written. */
  readonly contextLengths: Tensor;
  /** i32 `[maxSequences, maxBlocksPerSequence]` */
  readonly blockTables: Tensor;
  /** i32 `[maxOutputs]`: row (token index in the step) whose logits are wanted. */
  readonly outputRows: Tensor;
  /** i32 `[maxOutputs]`: OUTPUT_SAMPLE or OUTPUT_SCORE. */
  readonly outputModes: Tensor;
  /** i32 `[maxOutputs]`: token to score; unused when sampling. */
  readonly targetIds: Tensor;
  /** i32 `[maxOutputs]`: how many alternatives to report; -1 for not even the chosen token's log-probability. */
  readonly logprobCounts: Tensor;
  /** f32 `[maxOutputs]`: 0 is greedy. */
  readonly temperatures: Tensor;
  /** i32 `[maxOutputs]`: 0 is all. */
  readonly topK: Tensor;
  /** f32 `[maxOutputs]`: 1 is all. */
  readonly topP: Tensor;
  /** f32 `[maxOutputs]`: 0 is all. */
  readonly minP: Tensor;
  /** i32 `[maxOutputs, 2]`: seed of the sequence, and the index of the token that is drawn: together they fix the draw. */
  readonly seeds: Tensor;
  /** Result, i32 `[maxOutputs]`: the token sampled, or the target. */
  readonly resultIds: Tensor;
  /** Result, f32 `[maxOutputs]`: its log-probability under the untempered distribution, where asked for. */
  readonly resultLogprobs: Tensor;
  /** Result, i32 `[maxOutputs, maxLogprobs]`: the likeliest tokens, best first. */
  readonly topIds: Tensor;
  /** Result, f32 `[maxOutputs, maxLogprobs]` */
  readonly topLogprobs: Tensor;
}

type Layout = readonly (readonly [keyof StepTensors, DType, readonly number[]])[];

function layoutOf(limits: StepLimits): Layout {
  const { maxTokens, maxSequences, maxBlocksPerSequence, maxOutputs, maxLogprobs } = limits;
  return [
    ["header", "i32", [HEADER_FIELDS]],
    ["tokenIds", "i32", [maxTokens]],
    ["feeds", "i32", [maxTokens]],
    ["positions", "i32", [maxTokens]],
    ["slots", "i32", [maxTokens]],
    ["queryStarts", "i32", [maxSequences + 1]],
    ["contextLengths", "i32", [maxSequences]],
    ["blockTables", "i32", [maxSequences, maxBlocksPerSequence]],
    ["outputRows", "i32", [maxOutputs]],
    ["outputModes", "i32", [maxOutputs]],
    ["targetIds", "i32", [maxOutputs]],
    ["logprobCounts", "i32", [maxOutputs]],
    ["temperatures", "f32", [maxOutputs]],
    ["topK", "i32", [maxOutputs]],
    ["topP", "f32", [maxOutputs]],
    ["minP", "f32", [maxOutputs]],
    ["seeds", "i32", [maxOutputs, 2]],
    ["resultIds", "i32", [maxOutputs]],
    ["resultLogprobs", "f32", [maxOutputs]],
    ["topIds", "i32", [maxOutputs, Math.max(1, maxLogprobs)]],
    ["topLogprobs", "f32", [maxOutputs, Math.max(1, maxLogprobs)]],
  ];
}

/** What crosses to the ranks so that they see the same step. */
export interface StepHandle {
  readonly limits: StepLimits;
  readonly arena: ArenaHandle;
  /** Byte offset of each tensor, in the order of the layout. */
  readonly offsets: readonly number[];
}

/** Views of a step's arrays, by the names of StepTensors. */
export interface StepViews {
  readonly header: Int32Array;
  readonly tokenIds: Int32Array;
  readonly feeds: Int32Array;
  readonly positions: Int32Array;
  readonly slots: Int32Array;
  readonly queryStarts: Int32Array;
  readonly contextLengths: Int32Array;
  readonly blockTables: Int32Array;
  readonly outputRows: Int32Array;
  readonly outputModes: Int32Array;
  readonly targetIds: Int32Array;
  readonly logprobCounts: Int32Array;
  readonly temperatures: Float32Array;
  readonly topK: Int32Array;
  readonly topP: Float32Array;
  readonly minP: Float32Array;
  readonly seeds: Int32Array;
  readonly resultIds: Int32Array;
  readonly resultLogprobs: Float32Array;
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
}

/** The arrays of the steps that may be in flight; the n-th step is in `steps[n % steps.length]`. */
export type Steps = readonly [Step, ...Step[]];

/** The arrays of step n, which may have wrapped. */
export function stepOf(steps: Steps, n: number): Step {
  const { length } = steps;
  return steps[((n % length) + length) % length] ?? steps[0];
}

export class Step {
  readonly limits: StepLimits;
  readonly tensors: StepTensors;
  readonly views: StepViews;
  readonly #handle: StepHandle;

  private constructor(handle: StepHandle, tensors: StepTensors) {
    this.#handle = handle;
    this.limits = handle.limits;
    this.tensors = tensors;
    this.views = viewsOf(tensors);
  }

  /** Allocates the arrays of a step. */
  static create(limits: StepLimits): Step {
    const layout = layoutOf(limits);
    const sizeBytes = layout.reduce((sum, [, , shape]) => sum + shape.reduce((a, b) => a * b, 4) + 64, 0);
    const arena = Arena.create("step", sizeBytes);
    const tensors = layout.map(([name, dtype, shape]) => arena.allocate(`step.${name}`, dtype, shape));
    const handle = { limits, arena: arena.handle, offsets: tensors.map((tensor) => tensor.byteOffset) };
    return new Step(handle, byName(layout, tensors));
  }

  /** The step that another thread created. */
  static from(handle: StepHandle): Step {
    const arena = Arena.from(handle.arena);
    const layout = layoutOf(handle.limits);
    const tensors = layout.map(([name, dtype, shape], i): Tensor => {
      return { name: `step.${name}`, dtype, shape, arena, byteOffset: handle.offsets[i] ?? 0 };
    });
    return new Step(handle, byName(layout, tensors));
  }

  get handle(): StepHandle {
    return this.#handle;
  }
}

function byName(layout: Layout, tensors: readonly Tensor[]): StepTensors {
  const find = (name: keyof StepTensors): Tensor => {
    const tensor = tensors[layout.findIndex(([entry]) => entry === name)];
    if (tensor === undefined) throw new RangeError(`a step has no ${name}`);
    return tensor;
  };
  return {
    header: find("header"),
    tokenIds: find("tokenIds"),
    feeds: find("feeds"),
    positions: find("positions"),
    slots: find("slots"),
    queryStarts: find("queryStarts"),
    contextLengths: find("contextLengths"),
    blockTables: find("blockTables"),
    outputRows: find("outputRows"),
    outputModes: find("outputModes"),
    targetIds: find("targetIds"),
    logprobCounts: find("logprobCounts"),
    temperatures: find("temperatures"),
    topK: find("topK"),
    topP: find("topP"),
    minP: find("minP"),
    seeds: find("seeds"),
    resultIds: find("resultIds"),
    resultLogprobs: find("resultLogprobs"),
    topIds: find("topIds"),
    topLogprobs: find("topLogprobs"),
  };
}

function viewsOf(tensors: StepTensors): StepViews {
  return {
    header: i32Of(tensors.header),
    tokenIds: i32Of(tensors.tokenIds),
    feeds: i32Of(tensors.feeds),
    positions: i32Of(tensors.positions),
    slots: i32Of(tensors.slots),
    queryStarts: i32Of(tensors.queryStarts),
    contextLengths: i32Of(tensors.contextLengths),
    blockTables: i32Of(tensors.blockTables),
    outputRows: i32Of(tensors.outputRows),
    outputModes: i32Of(tensors.outputModes),
    targetIds: i32Of(tensors.targetIds),
    logprobCounts: i32Of(tensors.logprobCounts),
    temperatures: f32Of(tensors.temperatures),
    topK: i32Of(tensors.topK),
    topP: f32Of(tensors.topP),
    minP: f32Of(tensors.minP),
    seeds: i32Of(tensors.seeds),
    resultIds: i32Of(tensors.resultIds),
    resultLogprobs: f32Of(tensors.resultLogprobs),
    topIds: i32Of(tensors.topIds),
    topLogprobs: f32Of(tensors.topLogprobs),
  };
}
