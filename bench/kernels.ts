/**
 * Linear kernels, one format after the other, at each level of activations: GB/s of weights where few rows share them,
 * GFLOP/s where many do, each beside what the machine can do at most. Weights rotate through more memory than any cache
 * holds, as a model's do.
 */
import type { Operand } from "../src/core/operand.js";
import { f32Of } from "../src/core/tensor.js";
import type { ActivationLevel } from "../src/kernels/activation-levels.js";
import type { Kernels } from "../src/kernels/kernels.js";
import type { MachineLimits } from "../src/kernels/probe.js";
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
/** Beside the reference kernels at the same level, which is defined to the bit but for the order of f32 sums. */
const TOLERANCE = 1e-5;

/** A format at a level, on so many threads. */
interface Entry {
  readonly level: ActivationLevel;
  readonly kernels: Kernels;
  readonly weights: readonly MadeWeight[];
  readonly threads: number;
}

export const kernels: Bench = async (context) => {
  const rows: Row[] = [];
  const { weights: wanted } = context.options;
  for (const format of LINEAR_FORMATS.filter(({ name }) => wanted.length === 0 || wanted.includes(name))) {
    const { levels } = format;
    const validated = levels.map((level) => check(format, level));
    const entries = levels.flatMap((level) => {
      const native = createKernels(level, context.report);
      const weights = manyWeights(native, format);
      return threadCounts().map((threads): Entry => ({ level, kernels: native, weights, threads }));
    });
    for (const count of ROWS) rows.push(await measure(context, { format, entries, count, validated }));
    for (const { kernels: native, weights } of entries.filter(({ threads }) => threads === 1)) {
      for (const { release } of weights) release(native);
    }
  }
  useThreads(1);
  return { rows, peers: [] };
};

function manyWeights(native: Kernels, format: LinearFormat): MadeWeight[] {
  const random = seededRandom(SEED);
  const weights: MadeWeight[] = [];
  for (let bytes = 0; bytes < ROTATION_BYTES; bytes += weights.at(-1)?.bytes ?? ROTATION_BYTES) {
    weights.push(format.make(native, SIZE, SIZE, random));
  }
  return weights;
}

interface Work {
  readonly format: LinearFormat;
  readonly entries: readonly Entry[];
  /** Rows of x. */
  readonly count: number;
  readonly validated: readonly string[];
}

async function measure({ options, limits, report }: BenchContext, work: Work): Promise<Row> {
  const { format, entries, count, validated } = work;
  const few = count <= FEW_ROWS;
  const x = floats("f32", [count, SIZE], 1, seededRandom(SEED));
  const out = zeros("f32", [count, SIZE]);
  const samples = await alternate(entries, options.rounds, async ({ kernels: native, weights, threads }) => {
    useThreads(threads);
    const bound = { x: native.bind(x), out: native.bind(out) };
    const perCall = few ? (weights[0]?.bytes ?? 0) : 2 * count * SIZE * SIZE;
    const rate = perCall / timeCalls((index) => multiply(native, weights, bound, count, index), SAMPLE_MS) / 1e6;
    native.release(bound.x);
    native.release(bound.out);
    return rate;
  });
  report(`${format.name}, ${count} rows`);
  const limitOf = (median: number, name: string): LimitShare | null => {
    const entry = entries.find((candidate) => nameOf(candidate) === name);
    return entry === undefined || limits === null ? null : shareOfEntry(entry, median, few, limits);
  };
  return makeRow({
    subject: { format: format.name, rows: count },
    unit: few ? "GB/s" : "GFLOP/s",
    better: "higher",
    sampled: entries.map((entry, index) => ({ name: nameOf(entry), peer: false, samples: samples[index] ?? [] })),
    limitOf,
    validated,
  });
}

function multiply(
  native: Kernels,
  weights: readonly MadeWeight[],
  { x, out }: { readonly x: Operand; readonly out: Operand },
  count: number,
  index: number,
): void {
  const made = weights[index % weights.length];
  if (made !== undefined) native.linear(out, x, made.weight, null, count);
}

const nameOf = ({ level, threads }: Entry): string => `${level}, ${threadsName(threads)}`;

function shareOfEntry(
  { level, threads }: Entry,
  median: number,
  few: boolean,
  limits: MachineLimits,
): LimitShare | null {
  const which = threads === 1 ? "one" : "all";
  if (few) return shareOf("read", median, limits.readGBs[which], "GB/s");
  if (level === "f32") return shareOf("f32 peak", median, limits.fmaGflops[which], "GFLOP/s");
  if (level === "bf16") {
    const peak = limits.dotBf16Gflops;
    return peak === null ? null : shareOf("bf16 peak", median, peak[which], "GFLOP/s");
  }
  // Half as many int16 products fit a vector; that is the limit only where one instruction sums products of either.
  const peak = level === "int8" ? limits.dotInt8Gops[which] : limits.dotInt8Gops[which] / 2;
  return level === "int8" || /vnni|bf16/.test(limits.isa) ? shareOf(`${level} peak`, median, peak, "GOP/s") : null;
}

/** Compares with the reference kernels. Throws an Error that says how far off the result is. */
function check(format: LinearFormat, level: ActivationLevel): string {
  const run = (kernels: Kernels): Float32Array => {
    const random = seededRandom(SEED);
    const { weight } = format.make(kernels, CHECKED.outputs, CHECKED.inputs, random);
    const x = kernels.bind(floats("f32", [CHECKED.rows, CHECKED.inputs], 1, random));
    const out = kernels.bind(zeros("f32", [CHECKED.rows, CHECKED.outputs]));
    kernels.linear(out, x, weight, null, CHECKED.rows);
    return f32Of(out.tensor);
  };
  const result = run(createKernels(level, () => {}));
  const error = relativeError(result, run(createReferenceKernels(level)));
  const inexact = relativeError(result, run(createReferenceKernels("f32")));
  if (error <= TOLERANCE) {
    return `${level}: within ${error.toPrecision(2)} of the reference at this level, ${inexact.toPrecision(2)} of f32`;
  }
  throw new Error(
    `${format.name} at ${level}: expected results within ${TOLERANCE} of the reference kernels but received ${error}`,
  );
}
