import assert from "node:assert/strict";
import { BlockPool } from "../../src/engine/kv-cache.js";
import { resolveSampling } from "../../src/engine/sampling.js";
import { Scheduler } from "../../src/engine/scheduler.js";
import { Sequence } from "../../src/engine/sequence.js";
import { writeStep } from "../../src/engine/step-writer.js";
import { Step } from "../../src/rank/step.js";

const LIMITS = { maxTokens: 12, maxSequences: 4, maxBlocksPerSequence: 3, maxOutputs: 6, maxLogprobs: 5 };
const BLOCK_SIZE = 4;

describe("the step writer", () => {
  it("writes decodes, chunks of prompts and texts to score as the arrays of a step describe them", () => {
    const step = Step.create(LIMITS);
    // As a step before it may have left them.
    for (const array of Object.values(step.views)) array.fill(77);
    const pool = new BlockPool(8, BLOCK_SIZE);
    const scheduler = new Scheduler(LIMITS, pool);
    const sampling = resolveSampling(
      { temperature: 0.5, topK: 3, topP: 0.75, minP: 0.25, seed: 2 ** 32 - 1, logprobs: 2 },
      { vocabularySize: 99, maxLogprobs: 5, room: 9, endOfSequenceIds: [], hasTokenizer: true, drawSeed: () => 0 },
    );
    const decoding = new Sequence(0, { kind: "generate", sampling }, [10, 11, 12, 13]);
    scheduler.add(decoding);
    scheduler.schedule();
    scheduler.advance();
    decoding.append(14);
    scheduler.add(new Sequence(1, { kind: "score" }, [20, 21, 22, 23]));
    scheduler.add(new Sequence(2, { kind: "generate", sampling }, [30, 31, 32, 33, 34, 35, 36, 37, 38]));

    writeStep(step, scheduler.schedule(), BLOCK_SIZE);

    const { views } = step;
    assert.deepEqual([...views.header.subarray(0, 3)], [12, 3, 4], "tokens, sequences, outputs");
    assert.deepEqual([...views.tokenIds], [14, 20, 21, 22, 30, 31, 32, 33, 34, 35, 36, 37]);
    assert.deepEqual([...views.positions], [4, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert.deepEqual([...views.queryStarts.subarray(0, 4)], [0, 1, 4, 12]);
    assert.deepEqual([...views.contextLengths.subarray(0, 3)], [5, 3, 8]);
    // Blocks are handed out in ascending order: 0 and 1 to the first sequence, 2 to the second, 3 to 5 to the third.
    assert.deepEqual([...views.blockTables.subarray(0, 2)], [0, 1]);
    assert.deepEqual([...views.blockTables.subarray(3, 4)], [2]);
    assert.deepEqual([...views.blockTables.subarray(6, 8)], [3, 4]);
    assert.deepEqual([...views.slots], [4, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19]);
    assert.deepEqual([...views.outputRows.subarray(0, 4)], [0, 1, 2, 3]);
    assert.deepEqual([...views.outputModes.subarray(0, 4)], [0, 1, 1, 1]);
    assert.deepEqual([...views.targetIds.subarray(1, 4)], [21, 22, 23]);
    assert.deepEqual([...views.logprobCounts.subarray(0, 4)], [2, 0, 0, 0]);
    assert.deepEqual([views.temperatures[0], views.topK[0], views.topP[0], views.minP[0]], [0.5, 3, 0.75, 0.25]);
    for (const array of [views.temperatures, views.topK, views.minP]) assert.equal(array[1], 0, "nothing is drawn");
    assert.deepEqual([...views.seeds.subarray(0, 2)], [-1, 1], "the seed's bits, and the index of the token drawn");
  });
});
