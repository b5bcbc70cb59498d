// Is the simulator's cost model right? Its prediction of a decode step beside what ranks on threads take, in turns.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { launch } from "shardloom";
import { costModel, simulate } from "shardloom/testing";
import { createRegion } from "../dist/src/collectives/region.js";

const PROMPT = [504, 3575, 282, 4649, 314];
/** Elements of the all-reduces that latency and speed are read off. */
const SIZES = [1, 16_384];
const REPEATS = 2000;

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

/** Latency and speed of this machine's collectives: a line through the times of a small and a larger all-reduce. */
async function calibrate(worldSize) {
  if (worldSize === 1) return { latencyUs: 0, gbps: 1 };
  const region = createRegion({ worldSize });
  const threads = Array.from({ length: worldSize }, (_, rank) => {
    const workerData = { region, rank, sizes: SIZES, repeats: REPEATS };
    return new Worker(new URL("./exchange-thread.mjs", import.meta.url), { workerData });
  });
  const [[[small, large]]] = await Promise.all([
    once(threads[0], "message"),
    ...threads.map((thread) => once(thread, "exit")),
  ]);
  const moved = (count) => 4 * count * (worldSize - 1);
  return { latencyUs: small, gbps: (moved(SIZES[1]) - moved(SIZES[0])) / Math.max(0.001, large - small) / 1000 };
}

async function predictMs({ model, plugins, worldSize, tokens }) {
  const machine = costModel(await calibrate(worldSize));
  const simulation = await simulate({ model, plugins, worldSize, kernels: "native" });
  try {
    simulation.generate(PROMPT, tokens);
    const { trace } = simulation;
    const steps = trace.steps.map((_, index) => machine.predict(trace, index));
    // The first step is the prompt; the next few warm up.
    const decoded = steps.slice(Math.min(4, steps.length - 1));
    return {
      stepMs: median(decoded.map(({ stepMs }) => stepMs)),
      collectiveMs: median(decoded.map(({ collectiveMs }) => collectiveMs)),
    };
  } finally {
    await simulation.close();
  }
}

async function measureMs({ model, plugins, worldSize, tokens }) {
  const engine = await launch({ model, plugins, tensorParallelSize: worldSize });
  try {
    const sampling = { maxTokens: tokens, ignoreEndOfSequence: true };
    let timings;
    for (let run = 0; run < 2; run++) {
      for await (const delta of engine.generate({ promptTokenIds: PROMPT, sampling }))
        timings = delta.timings ?? timings;
    }
    return timings.tpotMs;
  } finally {
    await engine.close();
  }
}

/** Prints a table: predicted and measured milliseconds of a decode step. */
export async function predict({ model, worldSizes, tokens, runs, plugins }) {
  const loaded = await Promise.all(plugins.map(async (name) => (await import(name)).plugin));
  const results = new Map(worldSizes.map((worldSize) => [worldSize, { predicted: [], exchange: [], measured: [] }]));
  for (let run = 0; run < runs; run++) {
    for (const [worldSize, result] of results) {
      const { stepMs, collectiveMs } = await predictMs({ model, plugins: loaded, worldSize, tokens });
      result.predicted.push(stepMs);
      result.exchange.push(collectiveMs);
      result.measured.push(await measureMs({ model, plugins, worldSize, tokens }));
    }
  }
  console.log(`decode steps predicted from ranks that take turns, ${tokens} tokens, ${runs} runs\n`);
  console.table(
    [...results].map(([tp, { predicted, exchange, measured }]) => ({
      tp,
      "predicted ms": Number(median(predicted).toFixed(2)),
      "of that exchange": Number(median(exchange).toFixed(2)),
      "measured ms": Number(median(measured).toFixed(2)),
      "predicted / measured": Number((median(predicted) / median(measured)).toFixed(2)),
    })),
  );
}
