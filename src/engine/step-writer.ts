/** Writes a plan into the arrays of a step. Allocates nothing. */
import {
  OUTPUT_SAMPLE,
  OUTPUT_SCORE,
  STEP_FED,
  STEP_OUTPUTS,
  STEP_SEQUENCES,
  STEP_TOKENS,
  type Step,
  type StepViews,
} from "../rank/step.js";
import type { SamplingParams } from "./sampling.js";
import type { StepPlan } from "./scheduler.js";
import type { Sequence } from "./sequence.js";

/** Fills every input array of `step` that its header counts. `blockSize` is the tokens a block of KV cache holds. */
export function writeStep(step: Step, plan: StepPlan, blockSize: number): void {
  const { views, limits } = step;
  let row = 0;
  let fed = 0;
  let index = 0;
  for (const sequence of plan.sequences) {
    views.queryStarts[index] = row;
    views.contextLengths[index] = sequence.computed + sequence.stepTokens;
    writeBlockTable(views, sequence, index * limits.maxBlocksPerSequence, blockSize);
    fed += writeTokens(views, sequence, row, blockSize);
    row += sequence.stepTokens;
    writeOutputs(views, sequence, row);
    index++;
  }
  views.queryStarts[index] = row;
  views.header[STEP_TOKENS] = row;
  views.header[STEP_SEQUENCES] = index;
  views.header[STEP_OUTPUTS] = plan.outputs;
  views.header[STEP_FED] = fed;
}

function writeBlockTable(views: StepViews, sequence: Sequence, start: number, blockSize: number): void {
  const blocks = Math.ceil((sequence.computed + sequence.stepTokens) / blockSize);
  for (let i = 0; i < blocks; i++) views.blockTables[start + i] = sequence.blocks.at(i);
}

/** Returns how many of the rows wait for a token that the step before chooses: one, the last, or none. */
function writeTokens(views: StepViews, sequence: Sequence, firstRow: number, blockSize: number): number {
  let fed = 0;
  for (let i = 0; i < sequence.stepTokens; i++) {
    const position = sequence.computed + i;
    const offset = position % blockSize;
    const block = sequence.blocks.at((position - offset) / blockSize);
    const known = position < sequence.length;
    if (!known) fed++;
    views.tokenIds[firstRow + i] = known ? sequence.tokenAt(position) : 0;
    views.feeds[firstRow + i] = known ? -1 : sequence.feed;
    views.positions[firstRow + i] = position;
    views.slots[firstRow + i] = block * blockSize + offset;
  }
  return fed;
}

/** The outputs of a sequence belong to its last `stepOutputs` rows, which end before `endRow`. */
function writeOutputs(views: StepViews, sequence: Sequence, endRow: number): void {
  const { task, stepOutputs, firstOutput } = sequence;
  const nextPosition = sequence.computed + sequence.stepTokens;
  for (let i = 0; i < stepOutputs; i++) {
    const output = firstOutput + i;
    views.outputRows[output] = endRow - stepOutputs + i;
    if (task.kind === "generate") writeSampling(views, output, task.sampling, sequence.expectedLength);
    else writeTarget(views, output, sequence.tokenAt(nextPosition - stepOutputs + i + 1));
  }
}

function writeSampling(views: StepViews, output: number, sampling: SamplingParams, drawIndex: number): void {
  views.outputModes[output] = OUTPUT_SAMPLE;
  views.targetIds[output] = 0;
  views.logprobCounts[output] = sampling.logprobs;
  views.temperatures[output] = sampling.temperature;
  views.topK[output] = sampling.topK;
  views.topP[output] = sampling.topP;
  views.minP[output] = sampling.minP;
  // The draw depends on the token's place in the answer, not on the step: preemption does not change it.
  views.seeds[2 * output] = sampling.seed;
  views.seeds[2 * output + 1] = drawIndex;
}

function writeTarget(views: StepViews, output: number, targetId: number): void {
  views.outputModes[output] = OUTPUT_SCORE;
  views.targetIds[output] = targetId;
  views.logprobCounts[output] = 0;
  views.temperatures[output] = 0;
  views.topK[output] = 0;
  views.topP[output] = 1;
  views.minP[output] = 0;
  views.seeds[2 * output] = 0;
  views.seeds[2 * output + 1] = 0;
}
