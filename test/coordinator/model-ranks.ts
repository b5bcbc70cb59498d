/** Starts coordinators over real ranks (workers/rank.js) and runs sequences through them, without an engine. */
import { type Coordinator, type CoordinatorOptions, startCoordinator } from "../../src/coordinator/coordinator.js";
import { createLogger } from "../../src/core/logger.js";
import { createRegistries } from "../../src/loading/plugins.js";
import { selectFamily } from "../../src/models/registry.js";
import { OUTPUT_SAMPLE, STEP_OUTPUTS, STEP_SEQUENCES, STEP_TOKENS, type Step } from "../../src/rank/step.js";

const BLOCK_SIZE = 16;
const BLOCKS = 16;

export async function startModelRanks(
  path: string,
  worldSize: number,
  options: Pick<CoordinatorOptions, "plugins" | "timeouts" | "threadsPerRank" | "pinning"> = {},
): Promise<Coordinator> {
  const loader = createRegistries().modelLoaders.select(path);
  const description = await loader.describe(path);
  return startCoordinator({
    config: selectFamily(description.config).parseConfig(description.config),
    ranks: {
      path,
      loadFormat: loader.format,
      description,
      worldSize,
      dtype: "bf16",
      kvCacheDtype: "f32",
      activations: "f32",
      quantization: null,
      blockSize: BLOCK_SIZE,
      blocks: BLOCKS,
      maxModelLength: BLOCK_SIZE * BLOCKS,
      limits: { maxTokens: 256, maxSequences: 1, maxBlocksPerSequence: BLOCKS, maxOutputs: 1, maxLogprobs: 0 },
    },
    logger: createLogger("silent"),
    ...options,
  });
}

/** Tokens that greedy decoding appends to a prompt: one step for the prompt, then one a token. */
export async function decodeGreedily(
  coordinator: Coordinator,
  promptIds: readonly number[],
  count: number,
): Promise<number[]> {
  const answer: number[] = [];
  let stepIds = promptIds;
  let computed = 0;
  while (answer.length < count) {
    writeOneSequence(coordinator.steps[0], stepIds, computed);
    await coordinator.execute();
    computed += stepIds.length;
    stepIds = [coordinator.steps[0].views.resultIds[0] ?? -1];
    answer.push(...stepIds);
  }
  return answer;
}

/** A step of one sequence, whose position p lives in slot p, and whose last token is sampled greedily. */
function writeOneSequence({ views }: Step, ids: readonly number[], computed: number): void {
  for (const [i, id] of ids.entries()) {
    views.tokenIds[i] = id;
    views.positions[i] = computed + i;
    views.slots[i] = computed + i;
  }
  for (let block = 0; block < BLOCKS; block++) views.blockTables[block] = block;
  views.queryStarts.set([0, ids.length]);
  views.contextLengths[0] = computed + ids.length;
  views.outputRows[0] = ids.length - 1;
  views.outputModes[0] = OUTPUT_SAMPLE;
  views.logprobCounts[0] = -1;
  views.temperatures[0] = 0;
  views.header[STEP_TOKENS] = ids.length;
  views.header[STEP_SEQUENCES] = 1;
  views.header[STEP_OUTPUTS] = 1;
}
