/**
 * From hidden states to results: each rank computes the logits of its part of the vocabulary, then rank 0 chooses. When
 * only the likeliest token is wanted, ranks exchange (maximum, id) pairs; otherwise the whole rows are gathered.
 */
import type { AllGather, Pass } from "../collectives/collective.js";
import { invariant } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { f32Of, i32Of, isVirtual, type Tensor } from "../core/tensor.js";
import type { Kernels } from "../kernels/kernels.js";
import type { AllocatorFactory } from "../layers/model-memory.js";
import type { Model } from "../models/model.js";
import { type Range, rangeOf, rangeSize } from "../parallel/partition.js";
import { OUTPUT_SCORE, type Step, type Steps, type StepViews } from "./step.js";
import { largestLogits, type RowSummary, summarize, TokenDrawer } from "./token-choice.js";

/** Rows of logits computed at a time: bounds the memory of wide vocabularies. */
const ROWS_AT_A_TIME = 32;

/** What `resultIds` holds when a row of logits was not finite. */
export const NOT_FINITE = -1;

/** Where the logits of some output rows went: `[rows, vocabularySize]`, of the outputs from `firstOutput` on. */
export type LogitsListener = (firstOutput: number, rows: number, logits: Float32Array) => void;

export interface SamplerOptions {
  readonly kernels: Kernels;
  readonly rank: number;
  readonly allocator: AllocatorFactory;
  /** Called on rank 0 with whole rows of logits, where a step needs them; they are valid during the call. */
  readonly onLogits?: LogitsListener | undefined;
  readonly worldSize: number;
  readonly model: Model;
  readonly steps: Steps;
  readonly vocabularySize: number;
  readonly hiddenSize: number;
}

export class Sampler {
  readonly #options: SamplerOptions;
  readonly #rows: number;
  /** Ids of this rank. */
  readonly #ids: Range;
  readonly #outputRows: ReadonlyMap<Step, Operand>;
  readonly #hidden: Operand;
  readonly #logits: Operand;
  readonly #best: { readonly values: Operand; readonly ids: Operand };
  readonly #gatherBest: AllGather;
  readonly #gatherLogits: AllGather;
  /** What rank 0 reads and chooses from; null on other ranks, and where there are no bytes to read. */
  readonly #chooser: Chooser | null;

  constructor(options: SamplerOptions) {
    this.#options = options;
    const { kernels, steps, worldSize, model, vocabularySize } = options;
    const split = model.vocabulary;
    const rows = Math.min(ROWS_AT_A_TIME, steps[0].limits.maxOutputs);
    const arena = options.allocator(`rank${options.rank}.logits`, 16 * 1024 * 1024);
    this.#ids = rangeOf(split, options.rank);
    this.#rows = rows;
    this.#outputRows = new Map(steps.map((step) => [step, kernels.bind(step.tensors.outputRows)]));
    this.#hidden = kernels.bind(arena.allocate("selected", "f32", [rows, options.hiddenSize]));
    const logits = arena.allocate("logits", "f32", [rows, rangeSize(this.#ids)]);
    this.#logits = kernels.bind(logits);
    // Maxima and ids side by side in one tensor, so that one collective exchanges both.
    const pairs = arena.allocate("best", "i32", [2, rows]);
    this.#best = { values: kernels.bind(half(pairs, "f32", 0)), ids: kernels.bind(half(pairs, "i32", 1)) };
    const allPairs = arena.allocate("bestOfAll", "i32", [2, rows * worldSize]);
    this.#gatherBest = {
      kind: "allGather",
      site: "sampler.best",
      data: kernels.bind(pairs),
      out: kernels.bind(allPairs),
      widths: Array.from({ length: worldSize }, () => rows),
      rows: 2,
    };
    const all = worldSize === 1 ? logits : arena.allocate("allLogits", "f32", [rows, vocabularySize]);
    const widths = split.map(rangeSize);
    const out = worldSize === 1 ? this.#logits : kernels.bind(all);
    this.#gatherLogits = { kind: "allGather", site: "sampler.logits", data: this.#logits, out, widths, rows };
    this.#chooser = options.rank === 0 && !isVirtual(all) ? new Chooser(options, rows, allPairs, all) : null;
  }

  /** Fills the results of the step's `outputs` output rows, on rank 0. */
  *run(step: Step, outputs: number): Pass {
    const { kernels, model, worldSize } = this.#options;
    const outputRows = this.#outputRows.get(step);
    invariant(outputRows !== undefined, "a step was sampled in arrays that are not bound");
    for (let first = 0; first < outputs; first += this.#rows) {
      const rows = Math.min(this.#rows, outputs - first);
      kernels.gatherRows(this.#hidden, model.hidden, outputRows, first, rows);
      model.computeLogits(this.#logits, this.#hidden, rows);
      if (needsWholeRows(step, first, rows)) {
        this.#gatherLogits.rows = rows;
        if (worldSize > 1) yield this.#gatherLogits;
        this.#chooser?.choose(step, first, rows);
      } else {
        kernels.argmax(this.#best.values, this.#best.ids, this.#logits, rows, rangeSize(this.#ids), this.#ids.start);
        yield this.#gatherBest;
        this.#chooser?.pickBest(step, first, rows);
      }
    }
  }
}

/** The same answer on every rank: all read the same step. */
function needsWholeRows({ views }: Step, first: number, rows: number): boolean {
  const { outputModes, logprobCounts, temperatures } = views;
  for (let i = first; i < first + rows; i++) {
    if (outputModes[i] === OUTPUT_SCORE || (temperatures[i] ?? 0) > 0 || (logprobCounts[i] ?? -1) >= 0) return true;
  }
  return false;
}

/** Rank 0's part: it turns what was gathered into results. */
class Chooser {
  readonly #options: SamplerOptions;
  readonly #rows: number;
  readonly #bestOfAll: { readonly values: Float32Array; readonly ids: Int32Array };
  readonly #allLogits: Float32Array;
  readonly #drawer: TokenDrawer;

  /** pairs: i32 `[2, rows * worldSize]`, maxima as f32 and ids; logits: f32 `[rows, vocabularySize]`. */
  constructor(options: SamplerOptions, rows: number, pairs: Tensor, logits: Tensor) {
    this.#options = options;
    this.#rows = rows;
    this.#bestOfAll = { values: f32Of(half(pairs, "f32", 0)), ids: i32Of(half(pairs, "i32", 1)) };
    this.#allLogits = f32Of(logits);
    this.#drawer = new TokenDrawer(options.vocabularySize);
  }

  pickBest({ views }: Step, first: number, rows: number): void {
    const { values, ids } = this.#bestOfAll;
    const { resultIds, resultLogprobs } = views;
    for (let row = 0; row < rows; row++) {
      let best = row;
      // Ranks hold ascending ids, so the first among equals has the lowest.
      for (let rank = 1; rank < this.#options.worldSize; rank++) {
        const candidate = rank * this.#rows + row;
        const value = values[candidate] ?? Number.NaN;
        // Nor is a NaN passed over: what the model computes on another rank says nothing then.
        if (value > (values[best] ?? Number.NaN) || Number.isNaN(value)) best = candidate;
      }
      resultIds[first + row] = Number.isFinite(values[best]) ? (ids[best] ?? NOT_FINITE) : NOT_FINITE;
      resultLogprobs[first + row] = 0;
    }
  }

  choose(step: Step, first: number, rows: number): void {
    const { onLogits, vocabularySize } = this.#options;
    onLogits?.(first, rows, this.#allLogits.subarray(0, rows * vocabularySize));
    for (let row = 0; row < rows; row++) this.#chooseOne(step, first + row, row);
  }

  #chooseOne({ views, limits }: Step, output: number, row: number): void {
    const { vocabularySize } = this.#options;
    const logits = this.#allLogits.subarray(row * vocabularySize, (row + 1) * vocabularySize);
    const summary = summarize(logits);
    if (!Number.isFinite(summary.max)) {
      views.resultIds[output] = NOT_FINITE;
      views.resultLogprobs[output] = Number.NaN;
      return;
    }
    const id = this.#chooseId(views, output, logits, summary);
    views.resultIds[output] = id;
    views.resultLogprobs[output] = (logits[id] ?? Number.NaN) - summary.logSumExp;
    const count = Math.min(views.logprobCounts[output] ?? -1, limits.maxLogprobs, vocabularySize);
    if (count <= 0) return;
    const start = output * Math.max(1, limits.maxLogprobs);
    const values = views.topLogprobs.subarray(start, start + count);
    largestLogits(logits, count, views.topIds.subarray(start, start + count), values);
    for (let i = 0; i < count; i++) values[i] = (values[i] ?? Number.NaN) - summary.logSumExp;
  }

  #chooseId(views: StepViews, output: number, logits: Float32Array, summary: RowSummary): number {
    if (views.outputModes[output] === OUTPUT_SCORE) return views.targetIds[output] ?? 0;
    const temperature = views.temperatures[output] ?? 0;
    if (temperature <= 0) return summary.maxId;
    return this.#drawer.draw(logits, summary, {
      temperature,
      topK: views.topK[output] ?? 0,
      topP: views.topP[output] ?? 1,
      minP: views.minP[output] ?? 0,
      seed: views.seeds[2 * output] ?? 0,
      index: views.seeds[2 * output + 1] ?? 0,
    });
  }
}

/** Row `index` of an i32 tensor of two rows, as a vector of another 4-byte dtype. */
function half(tensor: Tensor, dtype: "f32" | "i32", index: number): Tensor {
  const columns = tensor.shape[1] ?? 0;
  return {
    ...tensor,
    name: `${tensor.name}.${index}`,
    dtype,
    shape: [columns],
    byteOffset: tensor.byteOffset + index * columns * 4,
  };
}
