/** One rank of the bench of all-reduces. Ranks 0 and 1 measure what a cache line costs, in turns with the all-reduces. */
import { parentPort, workerData } from "node:worker_threads";
import type { AllReduce, Barrier } from "../src/collectives/collective.js";
import type { CollectiveRegion } from "../src/collectives/region.js";
import { createSharedMemoryCollective } from "../src/collectives/shared-memory.js";
import { Arena } from "../src/core/arena.js";
import { InternalError } from "../src/core/errors.js";
import { nativeAddon } from "../src/core/native-addon.js";
import { f32Of } from "../src/core/tensor.js";
import { createNativeKernels } from "../src/kernels/native.js";

export interface ReduceWork {
  readonly region: CollectiveRegion;
  readonly rank: number;
  /** Memory in which ranks 0 and 1 exchange lines. */
  readonly probe: SharedArrayBuffer;
  readonly probeLines: number;
  readonly counts: readonly number[];
  readonly rounds: number;
}

/** What was measured of one size, one entry a round. */
export interface ReducedSize {
  readonly count: number;
  readonly micros: readonly number[];
  /** A cache line, one way. */
  readonly oneWayNs: readonly number[];
  /** Each of a row of lines, while as many go the other way. */
  readonly lineNs: readonly number[];
}

/** Bursts in a round. The best counts: what other processes take from this one is not ours to measure. */
const BURSTS = 4;
/** Floats that a burst sums, whatever their number in one all-reduce. */
const BURST_FLOATS = 400_000;
const MOST_REPEATS = 200;

const { region, rank, probe, probeLines, counts, rounds }: ReduceWork = workerData;
const { worldSize } = region;
const kernels = createNativeKernels();
const collective = createSharedMemoryCollective(region, rank, { timeoutMs: 30_000, native: true });
const tensor = Arena.create("bench", 4 * Math.max(...counts)).allocate("data", "f32", [1, Math.max(...counts)]);
const values = f32Of(tensor);
const data = kernels.bind(tensor);
const barrier: Barrier = { kind: "barrier", site: "bench" };
const exchangeNs = bindProbe();

/** How long an exchange of so many lines takes: of whole lines, at one address for both ranks. */
function bindProbe(): (lines: number, repeats: number) => number {
  const status = nativeAddon();
  if (!status.loaded) throw new InternalError(`the bench needs the addon: ${status.reason}`);
  const { addon } = status;
  const offset = (64 - addon.addressModulo(new Uint8Array(probe), 64)) % 64;
  const bytes = new Uint8Array(probe, offset, probe.byteLength - 64);
  const memory = addon.bind(bytes, "u8", 1, bytes.length);
  return (lines, repeats) => addon.exchangeLines(memory, rank, lines, repeats);
}

function best(burst: () => number): number {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < BURSTS; i++) least = Math.min(least, burst());
  return least;
}

/** Small integers: exact as bf16 on up to 8 ranks, and so are their sums. Leaves zeros, whose sums stay zero however often they are taken. */
function checkSums(request: AllReduce): void {
  const own = (i: number): number => (i & 31) + 1;
  for (let i = 0; i < request.count; i++) values[i] = own(i) * (rank + 1);
  collective.execute(request);
  const ranks = (worldSize * (worldSize + 1)) / 2;
  for (let i = 0; i < request.count; i++) {
    if (values[i] === own(i) * ranks) continue;
    throw new InternalError(`expected the sum ${own(i) * ranks} at ${i} of ${request.count} but received ${values[i]}`);
  }
  values.fill(0, 0, request.count);
}

function microsOf(request: AllReduce): number {
  const repeats = Math.max(2, Math.min(MOST_REPEATS, Math.round(BURST_FLOATS / (request.count * worldSize))));
  collective.execute(barrier);
  const start = performance.now();
  for (let i = 0; i < repeats; i++) collective.execute(request);
  return ((performance.now() - start) * 1000) / repeats;
}

function measure(): readonly ReducedSize[] {
  const sizes = counts.map((count) => {
    return { count, micros: [] as number[], oneWayNs: [] as number[], lineNs: [] as number[] };
  });
  // The first round checks and warms up.
  for (let round = 0; round <= rounds; round++) {
    for (const { count, micros, oneWayNs, lineNs } of sizes) {
      const request: AllReduce = { kind: "allReduce", site: "bench", data, count };
      if (round === 0) checkSums(request);
      collective.execute(barrier);
      const oneWay = rank < 2 ? best(() => exchangeNs(0, MOST_REPEATS)) : 0;
      const inRow = rank < 2 ? best(() => exchangeNs(probeLines, MOST_REPEATS)) : 0;
      const us = best(() => microsOf(request));
      if (round === 0) continue;
      micros.push(us);
      oneWayNs.push(oneWay);
      lineNs.push(Math.max(0, inRow - oneWay) / probeLines);
    }
  }
  return sizes;
}

parentPort?.postMessage(measure());
