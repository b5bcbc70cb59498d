import type { BenchContext } from "../frame/bench.js";
import { madeUpMix } from "./made-up-model.js";
import { type BenchModel, madeUpBenchModel, NF4, nf4BenchModel, sampleBenchModel } from "./model-store.js";
import { LLAMA_1B, type ModelShape, SMOLLM2_135M } from "./shapes.js";

const DEFAULT_SHAPES: readonly ModelShape[] = [SMOLLM2_135M, LLAMA_1B];
const DEFAULT_WEIGHTS = ["Q4_0", "BF16"];

/**
 * The models a user asked for, each in all the weights that were asked for; the sample model has its own. Fetched or
 * written if needed.
 */
export async function chooseModels({ options, report }: BenchContext): Promise<BenchModel[]> {
  const shapes = options.models.length > 0 ? options.models : DEFAULT_SHAPES;
  const mixes = options.weights.length > 0 ? options.weights : DEFAULT_WEIGHTS;
  const models: BenchModel[] = [];
  for (const shape of shapes) {
    if (shape === SMOLLM2_135M) models.push(sampleBenchModel());
    else
      for (const mix of mixes) {
        const made = mix === NF4 ? nf4BenchModel(shape, report) : madeUpBenchModel(shape, madeUpMix(mix), report);
        models.push(await made);
      }
  }
  return models;
}
