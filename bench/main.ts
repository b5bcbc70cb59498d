/** `npm run bench`: measures the machine, runs one bench, prints its table and keeps its result. */
import { writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { allreduce } from "./allreduce.js";
import { attention } from "./attention.js";
import { batch } from "./batch.js";
import { decode } from "./decode.js";
import type { Bench } from "./frame/bench.js";
import { bestLimits } from "./frame/best-limits.js";
import { describeMachine } from "./frame/machine.js";
import { type BenchOptions, parseOptions, USAGE, UsageError } from "./frame/options.js";
import { type BenchResult, RESULT_VERSION } from "./frame/result.js";
import { formatResult } from "./frame/table.js";
import { kernels } from "./kernels.js";
import { load } from "./load.js";
import { predict } from "./predict.js";
import { prefill } from "./prefill.js";

const benches: ReadonlyMap<string, Bench> = new Map([
  ["decode", decode],
  ["prefill", prefill],
  ["batch", batch],
  ["kernels", kernels],
  ["attention", attention],
  ["load", load],
  ["predict", predict],
  ["allreduce", allreduce],
]);

async function runBench(bench: Bench, options: BenchOptions): Promise<BenchResult> {
  const date = new Date().toISOString();
  const report = (line: string): void => console.error(`bench: ${line}`);
  const machine = describeMachine();
  const limits = bestLimits({ threads: availableParallelism() });
  const { rows, peers } = await bench({ options, limits, report });
  const { bench: name, note } = options;
  return { schema: "shardloom-bench", version: RESULT_VERSION, bench: name, date, note, machine, limits, peers, rows };
}

async function main(): Promise<void> {
  const args = process.argv.slice(2);
  const names = [...benches.keys()];
  if (args.includes("--help")) {
    console.log(`${USAGE}\n\nbenches: ${names.join(", ")}`);
    return;
  }
  const options = parseOptions(args, names);
  const bench = benches.get(options.bench);
  if (bench === undefined) return;
  const result = await runBench(bench, options);
  if (options.json !== null) writeFileSync(options.json, `${JSON.stringify(result, null, 2)}\n`);
  console.log(formatResult(result));
}

main().catch((error: unknown) => {
  if (error instanceof UsageError) console.error(`${error.message}\n\n${USAGE}`);
  else console.error(error);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
