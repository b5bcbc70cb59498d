/** One rank of a bench of collectives: times all-reduces of several sizes, and reports microseconds for each. */
import { parentPort, workerData } from "node:worker_threads";
import type { AllReduce } from "../src/collectives/collective.js";
import { createSharedMemoryCollective } from "../src/collectives/shared-memory.js";
import { Arena } from "../src/core/arena.js";
import { createKernels } from "../src/kernels/select.js";

export interface ExchangeWork {
  readonly region: Parameters<typeof createSharedMemoryCollective>[0];
  readonly rank: number;
  /** Elements of each all-reduce. */
  readonly sizes: readonly number[];
  readonly repeats: number;
}

const { region, rank, sizes, repeats }: ExchangeWork = workerData;
const kernels = createKernels("auto", () => {});
const native = kernels.backend === "native";
const collective = createSharedMemoryCollective(region, rank, { timeoutMs: 30_000, native });
const most = Math.max(...sizes);
const data = kernels.bind(Arena.create("bench", most * 4).allocate("data", "f32", [1, most]));
const micros = sizes.map((count) => {
  const request: AllReduce = { kind: "allReduce", data, count, site: "bench" };
  for (let i = 0; i < repeats / 10; i++) collective.execute(request);
  const start = performance.now();
  for (let i = 0; i < repeats; i++) collective.execute(request);
  return ((performance.now() - start) * 1000) / repeats;
});
parentPort?.postMessage(micros);
