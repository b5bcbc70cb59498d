/**
 * All-reduces of ranks on threads beside what the cores take to hand the same cache lines to each other, in turns: a
 * machine that changes its speed does so for both. Sizes are those of one token (a hidden size) up to a long prompt.
 */
import { once } from "node:events";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { COLLECTIVE_PAYLOADS, type CollectivePayload } from "../src/collectives/payload.js";
import { createRegion } from "../src/collectives/region.js";
import type { ReducedSize, ReduceWork } from "./allreduce-thread.js";
import type { Bench } from "./frame/bench.js";
import { makeRow, type Row } from "./frame/result.js";

const COUNTS = [576, 1024, 2048, 4096, 65_536, 1_048_576];
const WORLD_SIZES = [2, 4, 8];
/** Lines by which the cost of one is measured: as many as 4096 floats have, and fewer than any cache holds. */
const PROBE_LINES = 256;
/** Room for two sides, two buffers each, and what stands between them. */
const PROBE_BYTES = 256 * PROBE_LINES + 8192;
/** What flags, checks and the call itself may take, whatever the size. */
const FIXED_US = 0.3;
const LINE_BYTES = 64;

/** A thread a rank; what rank 0 measured. */
async function measure(worldSize: number, payload: CollectivePayload, rounds: number): Promise<readonly ReducedSize[]> {
  const region = createRegion({ worldSize, payload });
  const probe = new SharedArrayBuffer(PROBE_BYTES);
  const threads = Array.from({ length: worldSize }, (_, rank) => {
    const workerData: ReduceWork = { region, rank, probe, probeLines: PROBE_LINES, counts: COUNTS, rounds };
    return once(new Worker(new URL("./allreduce-thread.js", import.meta.url), { workerData }), "message");
  });
  const [first] = await Promise.all(threads);
  return first?.[0] ?? [];
}

/** The floor is that of two ranks: more ranks than cores wait for each other's time slices, which no line explains. */
function reduceRow(worldSize: number, payload: CollectivePayload, { count, micros, lineNs }: ReducedSize): Row {
  const lines = (worldSize - 1) * Math.ceil(((payload === "bf16" ? 2 : 4) * count) / LINE_BYTES);
  const floor = { name: "floor", peer: true, samples: lineNs.map((ns) => FIXED_US + (lines * ns) / 1000) };
  const ours = { name: "shardloom", peer: false, samples: micros };
  return makeRow({
    subject: { ranks: worldSize, payload, floats: count },
    unit: "us",
    better: "lower",
    sampled: worldSize > availableParallelism() ? [ours] : [ours, floor],
    limitOf: () => null,
    validated: ["sums of small integers are exact on every rank"],
  });
}

function lineRow(name: string, samples: readonly number[]): Row {
  return makeRow({
    subject: { ranks: 2, payload: "", floats: 0 },
    unit: "ns",
    better: "lower",
    sampled: [{ name, peer: false, samples }],
    limitOf: () => null,
    validated: [],
  });
}

/** The ratio is floor over ours: 1 where nothing but the lines takes time. */
export const allreduce: Bench = async ({ options, report }) => {
  const rows: Row[] = [];
  for (const worldSize of WORLD_SIZES) {
    for (const payload of COLLECTIVE_PAYLOADS) {
      report(`${worldSize} ranks, ${payload}`);
      const sizes = await measure(worldSize, payload, options.rounds);
      if (rows.length === 0) {
        const each = (of: (size: ReducedSize) => readonly number[]): readonly number[] => sizes.flatMap(of);
        rows.push(
          lineRow(
            "a line, one way",
            each(({ oneWayNs }) => oneWayNs),
          ),
        );
        const name = `a line of ${PROBE_LINES}, both ways`;
        rows.push(
          lineRow(
            name,
            each(({ lineNs }) => lineNs),
          ),
        );
      }
      rows.push(...sizes.map((size) => reduceRow(worldSize, payload, size)));
    }
  }
  return { rows, peers: [] };
};
