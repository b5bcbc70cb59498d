import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
import type { FloatDType } from "../../src/core/dtype.js";
import { bytesOf, type Tensor } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { KV_CACHE_DTYPES } from "../../src/kernels/kv-cache-dtype.js";
import { createNativeKernels } from "../../src/kernels/native.js";
import { helperThreads, helperThreadsAre } from "../coordinator/threads.js";
import { boundCache, copyOf, copyOfCache, randomCache, tensorsOf } from "./cache-tensors.js";
import { bitsOf, forEachIsa, integers, loadedAddon, Random, scoped, zeros } from "./tensors.js";

const addon = loadedAddon();
const THREAD_COUNTS = [2, 3, 5];
const FLOATS: readonly FloatDType[] = ["f32", "bf16", "f16"];

/** Runs a kernel on new outputs, and returns them. Calls must be worth several threads, or nothing is shared. */
type Run = (kernels: Kernels) => readonly Tensor[];

function linearRuns(): Record<string, Run> {
  const runs: Record<string, Run> = {};
  for (const dtype of FLOATS) {
    for (const [rows, inputs, outputs] of [
      [1, 1100, 203],
      [7, 300, 229],
      [50, 130, 131],
    ] as const) {
      const random = new Random(rows);
      const [x, weight] = [random.floats("f32", [rows, inputs]), random.floats(dtype, [outputs, inputs])];
      const bias = random.floats("f32", [outputs]);
      runs[`linear of ${rows} rows, ${dtype}`] = (kernels) => {
        const out = zeros("f32", [rows, outputs]);
        scoped(kernels, (bind) => {
          kernels.linear(bind(out), bind(x), { format: "dense", matrix: bind(weight) }, bind(bias), rows);
        });
        return [out];
      };
    }
  }
  return runs;
}

function bf16Runs(): Record<string, Run> {
  const rounding = createNativeKernels("bf16");
  const runs: Record<string, Run> = {};
  for (const [rows, inputs, outputs] of [
    [1, 1100, 203],
    [50, 130, 131],
  ] as const) {
    const random = new Random(rows);
    const [x, weight] = [random.floats("f32", [rows, inputs]), random.floats("bf16", [outputs, inputs])];
    runs[`linear of ${rows} rows, activations in bf16`] = () => {
      const out = zeros("f32", [rows, outputs]);
      scoped(rounding, (bind) => {
        const prepared = rounding.prepareLinear({ format: "dense", matrix: bind(weight) });
        rounding.linear(bind(out), bind(x), prepared, null, rows);
      });
      return [out];
    };
  }
  return runs;
}

function blockRuns(): Record<string, Run> {
  const runs: Record<string, Run> = {};
  const [inputs, outputs, blockSize] = [512, 421, 64];
  for (const rows of [1, 3, 50]) {
    const random = new Random(rows);
    const x = random.floats("f32", [rows, inputs]);
    const scales = random.floats("f32", [outputs, inputs / blockSize]);
    const codebook = random.floats("f32", [16]);
    const ids = integers(
      [300],
      Array.from({ length: 300 }, () => random.below(outputs + 40)),
    );
    const code4 = zeros("u8", [outputs, inputs / 2]);
    const int8 = zeros("i8", [outputs, inputs]);
    for (const codes of [code4, int8]) bytesOf(codes).set(bytesOf(codes).map(() => random.below(256)));
    for (const format of ["code4", "int8"] as const) {
      runs[`linear and embedding of ${rows} rows, ${format}`] = (kernels) => {
        const [out, rowsOut] = [zeros("f32", [rows, outputs]), zeros("f32", [300, inputs])];
        scoped(kernels, (bind) => {
          const shared = { scales: bind(scales), minimums: null, blockSize };
          const weight =
            format === "code4"
              ? ({ format, codes: bind(code4), codebook: bind(codebook), ...shared } as const)
              : ({ format, codes: bind(int8), multiplier: 1, ...shared } as const);
          kernels.linear(bind(out), bind(x), weight, null, rows);
          kernels.embedding(bind(rowsOut), bind(ids), weight, 300, 20);
        });
        return [out, rowsOut];
      };
    }
  }
  return runs;
}

/** Rows that one thread rounds alone, and rows that threads round together. */
function preparedRuns(): Record<string, Run> {
  const runs: Record<string, Run> = {};
  const [inputs, outputs, blockSize] = [512, 421, 32];
  for (const level of ["int16", "int8"] as const) {
    const rounding = createNativeKernels(level);
    for (const rows of [1, 5, 200]) {
      const random = new Random(rows);
      const x = random.floats("f32", [rows, inputs]);
      const scales = random.floats("f32", [outputs, inputs / blockSize]);
      const minimums = random.floats("f32", [outputs, inputs / blockSize]);
      const codebook = random.floats("f32", [16]);
      const code4 = zeros("u8", [outputs, inputs / 2]);
      const int8 = zeros("i8", [outputs, inputs]);
      for (const codes of [code4, int8]) bytesOf(codes).set(bytesOf(codes).map(() => random.below(256)));
      for (const format of ["code4", "int8"] as const) {
        runs[`linear of ${rows} rows, prepared ${format}, activations in ${level}`] = () => {
          const out = zeros("f32", [rows, outputs]);
          scoped(rounding, (bind) => {
            // Weights are put in order where they are, so each run has its own.
            const shared = { scales: bind(copyOf(scales)), minimums: bind(copyOf(minimums)), blockSize };
            const weight = rounding.prepareLinear(
              format === "code4"
                ? { format, codes: bind(copyOf(code4)), codebook: bind(codebook), ...shared }
                : { format, codes: bind(copyOf(int8)), multiplier: 1, ...shared },
            );
            assert.equal(weight.format, "prepared");
            rounding.linear(bind(out), bind(x), weight, null, rows);
            rounding.releaseLinear(weight);
          });
          return [out];
        };
      }
    }
  }
  return runs;
}

function rowRuns(): Record<string, Run> {
  const [rows, heads, headSize] = [37, 34, 64];
  const width = heads * headSize;
  const random = new Random(11);
  const [x, weight] = [random.floats("f32", [rows, width]), random.floats("f32", [width])];
  const headWeight = random.floats("f32", [headSize]);
  const positions = integers(
    [rows],
    Array.from({ length: rows }, () => random.below(50)),
  );
  const indices = integers([rows], random.permutation(rows));
  const cosSin = random.floats("f32", [50, headSize]);
  const filled = (use: (kernels: Kernels, out: Tensor) => void, shape: readonly number[]): Run => {
    return (kernels) => {
      const out = zeros("f32", shape);
      use(kernels, out);
      return [out];
    };
  };
  return {
    rmsNorm: filled((kernels, out) => {
      scoped(kernels, (bind) => kernels.rmsNorm(bind(out), bind(x), bind(weight), rows, 1e-5));
    }, x.shape),
    addRmsNorm: (kernels) => {
      const [out, residual] = [zeros("f32", x.shape), copyOf(x)];
      scoped(kernels, (bind) => {
        kernels.addRmsNorm(bind(out), bind(residual), bind(x), bind(weight), rows, 1e-5);
      });
      return [out, residual];
    },
    "headNorm and rope": (kernels) => {
      const out = copyOf(x);
      scoped(kernels, (bind) => {
        const operand = bind(out);
        kernels.headNorm(operand, bind(headWeight), rows, 0, heads, headSize, 1e-5);
        kernels.rope(operand, bind(positions), bind(cosSin), rows, 0, heads, headSize);
      });
      return [out];
    },
    siluMul: filled(
      (kernels, out) => scoped(kernels, (bind) => kernels.siluMul(bind(out), bind(x), rows)),
      [rows, width / 2],
    ),
    gatherRows: filled((kernels, out) => {
      scoped(kernels, (bind) => kernels.gatherRows(bind(out), bind(x), bind(indices), 0, rows));
    }, x.shape),
    argmax: (kernels) => {
      const [values, ids] = [zeros("f32", [rows]), zeros("i32", [rows])];
      scoped(kernels, (bind) => kernels.argmax(bind(values), bind(ids), bind(x), rows, width, 9));
      return [values, ids];
    },
    embedding: filled((kernels, out) => {
      scoped(kernels, (bind) => {
        kernels.embedding(bind(out), bind(indices), { format: "dense", matrix: bind(x) }, rows, 3);
      });
    }, x.shape),
  };
}

/** Contexts and queries of sequences. */
const BATCHES = {
  "a long context": [[1500, 2]],
  "a prompt": [[90, 90]],
  "a batch": [
    [70, 1],
    [200, 1],
    [40, 40],
    [1, 1],
    [90, 9],
  ],
} as const;

function attentionRuns(): Record<string, Run> {
  const runs: Record<string, Run> = {};
  const [heads, kvHeads, headSize, blockSize] = [10, 5, 32, 16];
  const random = new Random(5);
  const kvHeadOf = integers(
    [heads],
    Array.from({ length: heads }, (_, head) => Math.floor(head / 2)),
  );
  for (const [name, sequences] of Object.entries(BATCHES)) {
    const contexts = sequences.map(([context]) => context);
    const starts = [0];
    for (const [, queries] of sequences) starts.push((starts.at(-1) ?? 0) + queries);
    const rows = starts.at(-1) ?? 0;
    const columns = Math.ceil(Math.max(...contexts) / blockSize);
    const blocks = random.permutation(sequences.length * columns);
    const slots = integers([rows], random.permutation(blocks.length * blockSize).slice(0, rows));
    const q = random.floats("f32", [rows, (heads + 2 * kvHeads) * headSize]);
    for (const dtype of KV_CACHE_DTYPES) {
      const kept = randomCache(dtype, { blocks: blocks.length, kvHeads, headSize, blockSize }, random);
      runs[`writeKv and attention of ${name}, ${dtype}`] = (kernels) => {
        const own = copyOfCache(kept);
        const out = zeros("f32", [rows, heads * headSize]);
        scoped(kernels, (bind) => {
          const cache = boundCache(bind, own);
          kernels.writeKv(cache, bind(q), bind(slots), rows, heads * headSize, (heads + kvHeads) * headSize);
          const batch = {
            queryStarts: bind(integers([starts.length], starts)),
            contextLengths: bind(integers([contexts.length], contexts)),
            blockTables: bind(integers([contexts.length, columns], blocks)),
          };
          const map = bind(kvHeadOf);
          const of = { heads, kvHeads, kvHeadOf: map, headSize, scale: 0.125, slidingWindow: 0, softCap: 0 };
          kernels.attention(bind(out), bind(q), cache, batch, contexts.length, of);
        });
        return [out, ...tensorsOf(own)];
      };
    }
  }
  return runs;
}

const bits = (tensors: readonly Tensor[]): number[][] => tensors.map(bitsOf);

describe("kernels on several threads", () => {
  afterEach(() => addon.setThreads(1, 0, 0));

  forEachIsa((kernels) => {
    const runs = {
      ...linearRuns(),
      ...bf16Runs(),
      ...blockRuns(),
      ...preparedRuns(),
      ...rowRuns(),
      ...attentionRuns(),
    };
    for (const [name, run] of Object.entries(runs)) {
      it(`give the bits of one thread: ${name}`, () => {
        addon.setThreads(1, 0, 0);
        const alone = bits(run(kernels));
        for (const threads of THREAD_COUNTS) {
          addon.setThreads(threads, 20, 100);
          assert.equal(addon.threads, threads);
          assert.deepEqual(bits(run(kernels)), alone, `${threads} threads`);
        }
      });
    }
  });

  it("are refused in a number that makes no sense", () => {
    for (const threads of [0, -1, 1.5, 1025, Number.NaN]) {
      assert.throws(() => addon.setThreads(threads, 0, 0), RangeError, String(threads));
    }
    assert.throws(() => addon.setThreads(2, -1, 0), RangeError);
    assert.equal(addon.threads, 1);
  });

  it("are known by the ids that the system has for them, the calling thread left out", function () {
    if (!existsSync("/proc/self/task")) this.skip();
    for (const threads of [1, 3]) {
      addon.setThreads(threads, 0, 0);
      const ids = addon.helperIds();
      assert.equal(new Set(ids).size, threads - 1);
      for (const id of ids) assert.equal(readFileSync(`/proc/self/task/${id}/comm`, "utf8"), "shardloom\n");
    }
  });

  it("keep to the CPUs that they are given, or say that the system does not let them", () => {
    const cpus = (...ids: number[]): Uint8Array => new Uint8Array(Int32Array.from(ids).buffer);
    addon.setThreads(2, 0, 0);
    assert.throws(() => addon.placeThreads(cpus(0), 1, -1), /CPUs of 2 threads/);
    assert.throws(() => addon.placeThreads(cpus(), 0, -1), RangeError);
    assert.throws(() => addon.placeThreads(cpus(-1), 0, -1), /ids of CPUs/);
    assert.throws(() => addon.placeThreads(new Uint8Array(3), 0, -1), RangeError);
    // No machine has this one.
    assert.equal(addon.placeThreads(cpus(65_000), 0, -1), false);
  });

  it("end with the thread that they belong to, whether it returns or is terminated", async function () {
    if (!existsSync("/proc/self/task")) this.skip();
    const before = helperThreads();
    for (const end of ["return", "terminate"]) {
      const worker = new Worker(new URL("./threads-worker.js", import.meta.url), { workerData: { threads: 4, end } });
      const exited = once(worker, "exit");
      await once(worker, "message");
      if (end === "terminate") {
        await helperThreadsAre(before + 3);
        await worker.terminate();
      }
      await exited;
      await helperThreadsAre(before);
    }
  });
});
