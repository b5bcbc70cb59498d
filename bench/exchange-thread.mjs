// One rank of a bench of collectives: times all-reduces of one size, and reports microseconds for each.
import { parentPort, workerData } from "node:worker_threads";
import { createSharedMemoryCollective } from "../dist/src/collectives/shared-memory.js";
import { Arena } from "../dist/src/core/arena.js";
import { createKernels } from "../dist/src/kernels/select.js";

const { region, rank, sizes, repeats } = workerData;
const kernels = createKernels(() => {});
const collective = createSharedMemoryCollective(region, rank, {
  timeoutMs: 30_000,
  native: kernels.backend === "native",
});
const most = Math.max(...sizes);
const data = kernels.bind(Arena.create("bench", most * 4).allocate("data", "f32", [1, most]));
const micros = sizes.map((count) => {
  const request = { kind: "allReduce", data, count };
  for (let i = 0; i < repeats / 10; i++) collective.execute(request);
  const start = performance.now();
  for (let i = 0; i < repeats; i++) collective.execute(request);
  return ((performance.now() - start) * 1000) / repeats;
});
if (rank === 0) parentPort.postMessage(micros);
