/**
 * Linear kernels, one format after the other: GB/s of weights where few rows share them, GFLOP/s where many do, each
 * beside what the machine can do at most. Weights rotate through more memory than any cache holds, as a model's do.
 */
import { f32Of } from "../src/core/tensor.js";
import type { Kernels } from "../src/kernels/kernels.js";
import { createReferenceKernels } from "../src/kernels/reference.js";
import { createKernels } from "../src/kernels/select.js";
import { alternate } from "./frame/alternate.js";
import type { Bench, BenchContext } from "./frame/bench.js";
import { type LimitShare, makeRow, type Row, shareOf } from "./frame/result.js";
import { seededRandom } from "./models/weight-types.js";
import { relativeError } from "./operations/closeness.js";
import { LINEAR_FORMATS, type LinearFormat, type MadeWeight } from "./operations/linear-formats.js";
import { floats, zeros } from "./operations/random-tensors.js";
import { threadCounts, threadsName, useThreads } from "./operations/threads.js";
import { timeCalls } from "./operations/time-calls.js";

const SIZE = 4096;
const ROWS = [1, 4, 8, 32, 512];
/** Rows up to which reading weights is what takes time. */
const FEW_ROWS = 2;
const ROTATION_BYTES = 192 * 2 ** 20;
const SAMPLE_MS = 30;
const SEED = 5;

/** Sizes of the check before the clock: none a multiple of a tile. */
const CHECKED = { rows: 5, outputs: 67, inputs: 1088 };
const TOLERANCE = 1e-5;

export const kernels: Bench = async (context) => {
  const native = createKernels("f32", (message) => context.report(message));
  const rows: Row[] = [];
  for (const format of LINEAR_FORMATS) {
    const validated = check(native, format);
    const random = seededRandom(SEED);
    const weights = [format.make(native, SIZE, SIZE, random)];
    while (sumOfBytes(weights) < ROTATION_BYTES) weights.push(format.make(native, SIZE, SIZE, random));
    for (const count of ROWS) rows.push(await measure(context, { native, format, weights, count, validated }));
  }
  useThreads(1);
  return { rows, peers: [] };
};

interface Work {
  readonly native: Kernels;
  readonly format: LinearFormat;
  readonly weights: readonly MadeWeight[];
  /** Rows of x. */
  readonly count: number;
  readonly validated: string;
}

async function measure({ options, limits, report }: BenchContext, work: Work): Promise<Row> {
  const { native, format, weights, count, validated } = work;
  const x = native.bind(floats("f32", [count, SIZE], 1, seededRandom(SEED)));
  const out = native.bind(zeros("f32", [count, SIZE]));
  const call = (index: number): void => {
    const made = weights[index % weights.length];
    if (made !== undefined) native.linear(out, x, made.weight, null, count);
  };
  const perCall = count <= FEW_ROWS ? (weights[0]?.bytes ?? 0) : 2 * count * SIZE * SIZE;
  const threads = threadCounts();
  const samples = await alternate(threads, options.rounds, async (contestant) => {
    useThreads(contestant);
    return perCall / timeCalls(call, SAMPLE_MS) / 1e6;
  });
  native.release(x);
  native.release(out);
  report(`${format.name}, ${count} rows`);
  const limitOf = (median: number, name: string): LimitShare | null => {
    const which = name === threadsName(1) ? "one" : "all";
    return count <= FEW_ROWS
      ? shareOf("read", median, limits?.readGBs[which], "GB/s")
      : shareOf("f32 peak", median, limits?.fmaGflops[which], "GFLOP/s");
  };
  return makeRow({
    subject: { format: format.name, rows: count },
    unit: count <= FEW_ROWS ? "GB/s" : "GFLOP/s",
    better: "higher",
    sampled: threads.map((n, index) => ({ name: threadsName(n), peer: false, samples: samples[index] ?? [] })),
    limitOf,
    validated: [validated],
  });
}

const sumOfBytes = (weights: readonly MadeWeight[]): number => weights.reduce((sum, { bytes }) => sum + bytes, 0);

/** Compares with the reference kernels. Throws an Error that says how far off the result is. */
function check(native: Kernels, format: LinearFormat): string {
  const run = (kernels: Kernels): Float32Array => {
    const random = seededRandom(SEED);
    const { weight } = format.make(kernels, CHECKED.outputs, CHECKED.inputs, random);
    const x = kernels.bind(floats("f32", [CHECKED.rows, CHECKED.inputs], 1, random));
    const out = kernels.bind(zeros("f32", [CHECKED.rows, CHECKED.outputs]));
    kernels.linear(out, x, weight, null, CHECKED.rows);
    return f32Of(out.tensor);
  };
  const error = relativeError(run(native), run(createReferenceKernels()));
  if (error <= TOLERANCE) return `within ${error.toPrecision(2)} of the reference kernels`;
  throw new Error(
    `${format.name}: expected results within ${TOLERANCE} of the reference kernels but received ${error}`,
  );
}
