/**
 * The attention kernel over contexts of several lengths, decoding and reading a prompt, beside what the machine can read
 * and multiply; and decoding with other numbers of query heads a KV head and other head sizes, where arithmetic begins to
 * bound it. Whole models at such lengths: `prefill --prompt 512,16384` and `decode --context 16384`.
 */
import { f32Of } from "../src/core/tensor.js";
import type { Kernels } from "../src/kernels/kernels.js";
import { KV_CACHE_DTYPES, type KvCacheDType, kvPositionBytes } from "../src/kernels/kv-cache-dtype.js";
import { createReferenceKernels } from "../src/kernels/reference.js";
import { createKernels } from "../src/kernels/select.js";
import { alternate } from "./frame/alternate.js";
import type { Bench, BenchContext } from "./frame/bench.js";
import { type LimitShare, makeRow, type Row, shareOf } from "./frame/result.js";
import { seededRandom } from "./models/weight-types.js";
import { type AttentionExtents, makeAttention } from "./operations/attention-case.js";
import { relativeError } from "./operations/closeness.js";
import { threadCounts, threadsName, useThreads } from "./operations/threads.js";
import { timeCalls } from "./operations/time-calls.js";

const SAMPLE_MS = 40;
const SEED = 9;
/** Heads of Llama-3.2-1B. */
const HEADS = { heads: 32, kvHeads: 8, headSize: 64 };
const CONTEXTS = [512, 4096, 16_384];
const PREFILL_QUERIES = 512;
/** Query heads a KV head, and head sizes, that models have. */
const GROUPS = [1, 4, 8];
const HEAD_SIZES = [64, 128];
const GROUPED_CONTEXT = 4096;
/** Caches rotate through more than any cache of the CPU holds. */
const ROTATION_BYTES = 128 * 2 ** 20;
const CHECKED = { context: 131, queries: 3, layers: 1 };
const TOLERANCE = 1e-5;

export const attention: Bench = async (context) => {
  const native = createKernels("f32", (message) => context.report(message));
  const rows: Row[] = [];
  for (const dtype of KV_CACHE_DTYPES) {
    const validated = check(native, dtype);
    for (const length of CONTEXTS) {
      const decoding: AttentionExtents = { ...HEADS, context: length, queries: 1, dtype, layers: 1 };
      rows.push(await measure(context, native, { ...decoding, layers: layersOf(decoding) }, validated));
      const reading: AttentionExtents = { ...HEADS, context: length, queries: PREFILL_QUERIES, dtype, layers: 1 };
      rows.push(await measure(context, native, reading, validated));
    }
  }
  for (const dtype of ["bf16", "int8"] as const) {
    const validated = check(native, dtype);
    for (const headSize of HEAD_SIZES) {
      for (const group of GROUPS) {
        const heads = { kvHeads: HEADS.kvHeads, heads: group * HEADS.kvHeads, headSize };
        // That of the rows above.
        if (heads.heads === HEADS.heads && headSize === HEADS.headSize) continue;
        const decoding: AttentionExtents = { ...heads, context: GROUPED_CONTEXT, queries: 1, dtype, layers: 1 };
        rows.push(await measure(context, native, { ...decoding, layers: layersOf(decoding) }, validated));
      }
    }
  }
  useThreads(1);
  return { rows, peers: [] };
};

function layersOf({ kvHeads, headSize, context, dtype }: AttentionExtents): number {
  return Math.ceil(ROTATION_BYTES / (context * kvHeads * kvPositionBytes(dtype, headSize)));
}

async function measure(
  { options, limits, report }: BenchContext,
  native: Kernels,
  extents: AttentionExtents,
  validated: string,
): Promise<Row> {
  const { queries, dtype, context, heads, kvHeads, headSize } = extents;
  const made = makeAttention(native, extents, seededRandom(SEED));
  const decoding = queries === 1;
  const perCall = decoding ? made.bytes : made.flops;
  const threads = threadCounts();
  const samples = await alternate(threads, options.rounds, async (contestant) => {
    useThreads(contestant);
    return perCall / timeCalls(made.call, SAMPLE_MS) / 1e6;
  });
  made.release();
  const part = decoding ? "decode" : `read ${queries}`;
  const shape = `${heads}/${kvHeads}x${headSize}`;
  report(`${part} over ${context} positions of ${dtype}, heads ${shape}`);
  const limitOf = (median: number, name: string): LimitShare | null => {
    const which = name === threadsName(1) ? "one" : "all";
    return decoding
      ? shareOf("read", median, limits?.readGBs[which], "GB/s")
      : shareOf("f32 peak", median, limits?.fmaGflops[which], "GFLOP/s");
  };
  return makeRow({
    subject: { what: part, context, heads: shape, kv: dtype },
    unit: decoding ? "GB/s" : "GFLOP/s",
    better: "higher",
    sampled: threads.map((n, index) => ({ name: threadsName(n), peer: false, samples: samples[index] ?? [] })),
    limitOf,
    validated: [validated],
  });
}

/** Compares with the reference kernels. Throws an Error that says how far off the result is. */
function check(native: Kernels, dtype: KvCacheDType): string {
  const run = (kernels: Kernels): Float32Array => {
    const made = makeAttention(kernels, { ...HEADS, ...CHECKED, dtype }, seededRandom(SEED));
    made.call(0);
    return f32Of(made.out.tensor);
  };
  const error = relativeError(run(native), run(createReferenceKernels()));
  if (error <= TOLERANCE) return `within ${error.toPrecision(2)} of the reference kernels`;
  throw new Error(
    `attention over ${dtype}: expected results within ${TOLERANCE} of the reference but received ${error}`,
  );
}
