/** Is the simulator's cost model right? Its prediction of a decode step beside what ranks on threads take, in turns. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { type CollectiveRegion, createRegion } from "../src/collectives/region.js";
import { costModel, simulate } from "../src/testing/index.js";
import { startShardloom } from "./contestants/shardloom.js";
import type { ExchangeWork } from "./exchange-thread.js";
import type { Bench } from "./frame/bench.js";
import { makeRow, type Row } from "./frame/result.js";
import { median } from "./frame/statistics.js";
import { type BenchModel, sampleBenchModel } from "./models/model-store.js";

const PROMPT = [504, 3575, 282, 4649, 314];
/** Elements of the all-reduces that latency and speed are read off. */
const SMALL = 1;
const LARGE = 16_384;
const REPEATS = 2000;

/** Latency and speed of this machine's collectives: a line through the times of a small and a larger all-reduce. */
async function calibrate(worldSize: number): Promise<{ latencyUs: number; gbps: number }> {
  if (worldSize === 1) return { latencyUs: 0, gbps: 1 };
  const region = createRegion({ worldSize });
  const times = await Promise.all(Array.from({ length: worldSize }, (_, rank) => exchange(region, rank)));
  const [small = 0, large = 0] = times[0] ?? [];
  const moved = (count: number): number => 4 * count * (worldSize - 1);
  return { latencyUs: small, gbps: (moved(LARGE) - moved(SMALL)) / Math.max(0.001, large - small) / 1000 };
}

/** Microseconds of each size, as one rank's thread measures them. */
async function exchange(region: CollectiveRegion, rank: number): Promise<number[]> {
  const workerData: ExchangeWork = { region, rank, sizes: [SMALL, LARGE], repeats: REPEATS };
  const thread = new Worker(new URL("./exchange-thread.js", import.meta.url), { workerData });
  const [micros] = await once(thread, "message");
  return micros;
}

async function predictMs({ path }: BenchModel, worldSize: number, tokens: number): Promise<number> {
  const machine = costModel(await calibrate(worldSize));
  const { plugin } = await import("@shardloom/gguf");
  const simulation = await simulate({ model: path, plugins: [plugin], worldSize, kernels: "native" });
  try {
    simulation.generate(PROMPT, tokens);
    const { trace } = simulation;
    const steps = trace.steps.map((_, index) => machine.predict(trace, index));
    // The first step is the prompt; the next few warm up.
    return median(steps.slice(Math.min(4, steps.length - 1)).map(({ stepMs }) => stepMs));
  } finally {
    await simulation.close();
  }
}

async function measureMs(model: BenchModel, worldSize: number, tokens: number): Promise<number> {
  const setup = { name: `tp${worldSize}`, options: { tensorParallelSize: worldSize } };
  const contestant = await startShardloom(model, setup, { contextTokens: tokens + 64, sequences: 1 });
  try {
    const work = { sequences: 1, contextTokens: PROMPT.length, tokens };
    await contestant.decode(work);
    return 1000 / (await contestant.decode(work));
  } finally {
    await contestant.close();
  }
}

export const predict: Bench = async ({ options }) => {
  const model = sampleBenchModel();
  const rows: Row[] = [];
  for (const worldSize of options.tp) {
    const predicted: number[] = [];
    const measured: number[] = [];
    for (let round = 0; round < options.rounds; round++) {
      predicted.push(await predictMs(model, worldSize, options.tokens));
      measured.push(await measureMs(model, worldSize, options.tokens));
    }
    const row = makeRow({
      subject: { model: model.shape.name, weights: model.weights, tp: worldSize },
      unit: "ms/token",
      better: "lower",
      sampled: [
        { name: "measured", peer: false, samples: measured },
        { name: "predicted", peer: true, samples: predicted },
      ],
      limitOf: () => null,
      validated: [],
    });
    rows.push(row);
  }
  return { rows, peers: [] };
};
