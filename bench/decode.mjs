// Decoding one sequence at several world sizes, in turns, so that a machine that changes its speed does so for all.
import { launch } from "shardloom";

const PROMPT = [504, 3575, 282, 4649, 314];

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

async function measure(engine, tokens) {
  const sampling = { maxTokens: tokens, ignoreEndOfSequence: true };
  for await (const delta of engine.generate({ promptTokenIds: PROMPT, sampling })) {
    if (delta.timings !== undefined) return delta.timings;
  }
  throw new Error("the engine gave no timings");
}

/** Prints a table: median, minimum and maximum of milliseconds a token, and bytes of weights read a second. */
export async function decode({ model, worldSizes, tokens, runs, plugins }) {
  const results = new Map(worldSizes.map((worldSize) => [worldSize, { tpot: [], ttft: [], bytes: 0 }]));
  for (let run = 0; run <= runs; run++) {
    for (const [worldSize, result] of results) {
      const engine = await launch({ model, tensorParallelSize: worldSize, plugins });
      try {
        await measure(engine, 4);
        const { ttftMs, tpotMs } = await measure(engine, tokens);
        // The first round warms the page cache and the machine.
        if (run > 0) {
          result.tpot.push(tpotMs);
          result.ttft.push(ttftMs);
        }
        result.bytes = engine.reports.reduce((sum, { parameterBytes }) => sum + parameterBytes, 0);
      } finally {
        await engine.close();
      }
    }
  }
  console.log(`decode, ${tokens} tokens, ${runs} runs\n`);
  console.table(
    [...results].map(([tp, { tpot, ttft, bytes }]) => ({
      tp,
      "ms/token": Number(median(tpot).toFixed(2)),
      min: Number(Math.min(...tpot).toFixed(2)),
      max: Number(Math.max(...tpot).toFixed(2)),
      "tokens/s": Number((1000 / median(tpot)).toFixed(1)),
      "TTFT ms": Number(median(ttft).toFixed(1)),
      "weights GB/s": Number((bytes / median(tpot) / 1e6).toFixed(1)),
    })),
  );
}
