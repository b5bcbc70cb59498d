/**
 * Runs one sequence step by step, without an engine: prompt in, logits out. The steps are those that the engine would
 * write; the sequence has the first blocks of the KV cache, in order.
 */
import { OUTPUT_SAMPLE, STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS, type Step } from "../rank/step.js";

/** What a driver needs of an executor. */
export interface StepRunner {
  readonly step: Step;
  /** Runs the step that has been written. */
  runStep(): void;
}

export class SequenceDriver {
  readonly #runner: StepRunner;
  readonly #vocabularySize: number;
  #length = 0;
  /** Logits of the outputs of the current step, as they arrive. */
  #rows: Float32Array[] = [];

  constructor(runner: StepRunner, vocabularySize: number) {
    this.#runner = runner;
    this.#vocabularySize = vocabularySize;
  }

  /** Tokens in the KV cache. */
  get length(): number {
    return this.#length;
  }

  /** To be called with the logits that a step makes. */
  accept(firstOutput: number, rows: number, logits: Float32Array): void {
    const size = this.#vocabularySize;
    for (let row = 0; row < rows; row++) {
      this.#rows[firstOutput + row] = logits.slice(row * size, (row + 1) * size);
    }
  }

  /** Appends tokens and returns the logits after each of them, or after the last one alone. */
  append(tokenIds: readonly number[], all: boolean): Float32Array[] {
    const { maxTokens, maxOutputs } = this.#runner.step.limits;
    const chunk = all ? Math.min(maxTokens, maxOutputs) : maxTokens;
    const logits: Float32Array[] = [];
    for (let first = 0; first < tokenIds.length; first += chunk) {
      const ids = tokenIds.slice(first, first + chunk);
      const isLast = first + ids.length === tokenIds.length;
      this.#write(ids, all ? ids.length : isLast ? 1 : 0);
      this.#rows = [];
      this.#runner.runStep();
      this.#length += ids.length;
      logits.push(...this.#rows);
    }
    return logits;
  }

  #write(ids: readonly number[], outputs: number): void {
    const { views } = this.#runner.step;
    views.header[STEP_TOKENS] = ids.length;
    views.header[STEP_SEQUENCES] = 1;
    views.header[STEP_OUTPUTS] = outputs;
    views.queryStarts[0] = 0;
    views.queryStarts[1] = ids.length;
    views.contextLengths[0] = this.#length + ids.length;
    const { maxBlocksPerSequence } = this.#runner.step.limits;
    for (let block = 0; block < maxBlocksPerSequence; block++) views.blockTables[block] = block;
    ids.forEach((id, i) => {
      views.tokenIds[i] = id;
      views.positions[i] = this.#length + i;
      views.slots[i] = this.#length + i;
    });
    for (let output = 0; output < outputs; output++) this.#writeOutput(output, ids.length - outputs + output);
  }

  /** Greedy, with the whole row of logits gathered. */
  #writeOutput(output: number, row: number): void {
    const { views } = this.#runner.step;
    views.outputRows[output] = row;
    views.outputModes[output] = OUTPUT_SAMPLE;
    views.targetIds[output] = 0;
    views.logprobCounts[output] = 0;
    views.temperatures[output] = 0;
    views.topK[output] = 0;
    views.topP[output] = 1;
    views.minP[output] = 0;
    views.seeds[2 * output] = 0;
    views.seeds[2 * output + 1] = 0;
  }
}
