import assert from "node:assert/strict";
import fc from "fast-check";
import { f32Of, type Tensor } from "../../src/core/tensor.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import { KV_CACHE_DTYPES, type KvCacheDType } from "../../src/kernels/kv-cache-dtype.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { boundCache, type CacheTensors, randomCache } from "./cache-tensors.js";
import { assertClose, bitsOf, floats, forEachIsa, integers, numbersOf, Random, scoped, zeros } from "./tensors.js";

interface Sequence {
  /** Positions in the cache, those of the queries included. */
  readonly context: number;
  readonly queries: number;
}

interface Setting {
  readonly dtype: KvCacheDType;
  readonly headSize: number;
  readonly blockSize: number;
  readonly kvHeadOf: readonly number[];
  readonly kvHeads: number;
  readonly slidingWindow: number;
  readonly softCap: number;
  readonly sequences: readonly Sequence[];
}

interface Inputs {
  readonly setting: Setting;
  readonly q: Tensor;
  readonly cache: CacheTensors;
  readonly queryStarts: Tensor;
  readonly contextLengths: Tensor;
  readonly blockTables: Tensor;
}

/** Columns of q beyond the heads, as the keys and values of a fused projection are. */
const EXTRA_COLUMNS = 3;

function makeInputs(setting: Setting, seed: number): Inputs {
  const random = new Random(seed);
  const { dtype, headSize, blockSize, kvHeads, kvHeadOf, sequences } = setting;
  const blocksOf = ({ context }: Sequence) => Math.ceil(context / blockSize);
  const tableColumns = Math.max(1, ...sequences.map(blocksOf)) + 1;
  const needed = sequences.reduce((sum, sequence) => sum + blocksOf(sequence), 0);
  const blocks = random.permutation(needed + 2);
  const starts = [0];
  const tables: number[] = [];
  for (const sequence of sequences) {
    starts.push((starts.at(-1) ?? 0) + sequence.queries);
    const own = Array.from({ length: blocksOf(sequence) }, () => blocks.pop() ?? 0);
    // Entries that no position needs may hold anything.
    tables.push(...own, ...Array.from({ length: tableColumns - own.length }, () => -1));
  }
  const columns = kvHeadOf.length * headSize + EXTRA_COLUMNS;
  return {
    setting,
    q: random.floats("f32", [starts.at(-1) ?? 0, columns], 2),
    cache: randomCache(dtype, { blocks: needed + 2, kvHeads, headSize, blockSize }, random),
    queryStarts: integers([starts.length], starts),
    contextLengths: integers(
      [sequences.length],
      sequences.map(({ context }) => context),
    ),
    blockTables: integers([sequences.length, tableColumns], tables),
  };
}

function attend(kernels: Kernels, inputs: Inputs): Tensor {
  const { headSize, kvHeads, kvHeadOf, slidingWindow, softCap, sequences } = inputs.setting;
  const heads = kvHeadOf.length;
  const out = zeros("f32", [inputs.q.shape[0] ?? 0, heads * headSize]);
  scoped(kernels, (bind) => {
    const cache = boundCache(bind, inputs.cache);
    const batch = {
      queryStarts: bind(inputs.queryStarts),
      contextLengths: bind(inputs.contextLengths),
      blockTables: bind(inputs.blockTables),
    };
    const scale = 1 / Math.sqrt(headSize);
    const map = bind(integers([heads], kvHeadOf));
    const shape = { heads, kvHeads, kvHeadOf: map, headSize, scale, slidingWindow, softCap };
    kernels.attention(bind(out), bind(inputs.q), cache, batch, sequences.length, shape);
  });
  return out;
}

const reference = createReferenceKernels();

/** Values are below 1, so this is relative to the largest that an output can be. */
const TOLERANCE = 1e-5;

function expectReference(kernels: Kernels, inputs: Inputs): void {
  assertClose(attend(kernels, inputs), attend(reference, inputs), () => TOLERANCE);
}

const sequenceArbitrary = fc
  .tuple(fc.integer({ min: 1, max: 90 }), fc.nat())
  .map(([context, part]): Sequence => ({ context, queries: part % (context + 1) }));

const settings: fc.Arbitrary<Setting> = fc.record({
  dtype: fc.constantFrom(...KV_CACHE_DTYPES),
  headSize: fc.oneof(fc.constantFrom(16, 32, 64, 80, 128), fc.integer({ min: 1, max: 70 })),
  blockSize: fc.oneof(fc.constantFrom(8, 16, 32), fc.integer({ min: 1, max: 40 })),
  kvHeadOf: fc
    .array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 9 })
    .map((heads) => heads.sort((a, b) => a - b)),
  kvHeads: fc.constant(3),
  slidingWindow: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 50 })),
  softCap: fc.constantFrom(0, 2, 30),
  sequences: fc.array(sequenceArbitrary, { minLength: 1, maxLength: 4 }),
});

const grouped: Setting = {
  dtype: "bf16",
  headSize: 64,
  blockSize: 16,
  kvHeadOf: [0, 0, 0, 1, 1, 1, 2, 2, 2],
  kvHeads: 3,
  slidingWindow: 0,
  softCap: 0,
  sequences: [{ context: 75, queries: 75 }],
};

describe("native attention", () => {
  forEachIsa((kernels) => {
    it("agrees with the reference for any heads, blocks, windows, caps and sequences", () => {
      fc.assert(
        fc.property(settings, fc.integer(), (setting, seed) => expectReference(kernels, makeInputs(setting, seed))),
        { numRuns: 120 },
      );
    });

    it("agrees with the reference for the head sizes of models, in prefill and decode", () => {
      for (const [i, headSize] of [16, 32, 64, 80, 96, 112, 128, 256, 512].entries()) {
        const dtype = i % 2 === 0 ? "int8" : "bf16";
        const sequences = [
          { context: 40, queries: 40 },
          { context: 70, queries: 1 },
          { context: 33, queries: 0 },
          { context: 64, queries: 5 },
        ];
        expectReference(kernels, makeInputs({ ...grouped, dtype, headSize, sequences }, headSize));
      }
    });

    it("agrees with the reference when all heads share one KV head, more than a tile holds", () => {
      const kvHeadOf = Array.from({ length: 71 }, () => 0);
      const sequences = [{ context: 35, queries: 3 }];
      expectReference(kernels, makeInputs({ ...grouped, headSize: 32, kvHeads: 1, kvHeadOf, sequences }, 1));
    });

    for (const [slidingWindow, dtype] of [
      [0, "bf16"],
      [20, "bf16"],
      [0, "int8"],
      [20, "int8"],
    ] as const) {
      it(`gives a query the same bits in one prefill, in chunks and one by one (${dtype}, window ${slidingWindow})`, () => {
        const inputs = makeInputs({ ...grouped, dtype, slidingWindow }, 7);
        const whole = bitsOf(attend(kernels, inputs));
        const width = grouped.kvHeadOf.length * grouped.headSize;
        const qs = numbersOf(inputs.q);
        const columns = inputs.q.shape[1] ?? 0;
        for (const size of [1, 7, 32, 50]) {
          for (let start = 0; start < 75; start += size) {
            const queries = Math.min(size, 75 - start);
            const chunk = {
              ...inputs,
              setting: { ...inputs.setting, sequences: [{ context: start + queries, queries }] },
              q: floats("f32", [queries, columns], qs.slice(start * columns, (start + queries) * columns)),
              queryStarts: integers([2], [0, queries]),
              contextLengths: integers([1], [start + queries]),
            };
            const expected = whole.slice(start * width, (start + queries) * width);
            assert.deepEqual(bitsOf(attend(kernels, chunk)), expected, `queries ${start} to ${start + queries}`);
          }
        }
      });
    }

    for (const [slidingWindow, dtype] of [
      [0, "bf16"],
      [300, "bf16"],
      [700, "int8"],
      [0, "int8"],
    ] as const) {
      it(`gives a query of a long context the bits it has in a prefill (${dtype}, window ${slidingWindow})`, () => {
        const context = 1100;
        const setting = { ...grouped, dtype, headSize: 16, kvHeadOf: [0, 0, 1], kvHeads: 2, slidingWindow };
        const inputs = makeInputs({ ...setting, sequences: [{ context, queries: context }] }, 17);
        const whole = attend(kernels, inputs);
        assertClose(whole, attend(reference, inputs), () => TOLERANCE);
        const [width, columns] = [3 * 16, inputs.q.shape[1] ?? 0];
        // Around the ends of partitions, of spans and of blocks, alone and a few at a time.
        for (const [end, queries] of [
          [512, 1],
          [513, 1],
          [513, 2],
          [812, 1],
          [813, 5],
          [1025, 1],
          [1030, 16],
          [context, 1],
        ] as const) {
          const part = {
            ...inputs,
            setting: { ...inputs.setting, sequences: [{ context: end, queries }] },
            q: floats("f32", [queries, columns], numbersOf(inputs.q).slice((end - queries) * columns, end * columns)),
            queryStarts: integers([2], [0, queries]),
            contextLengths: integers([1], [end]),
          };
          const expected = bitsOf(whole).slice((end - queries) * width, end * width);
          assert.deepEqual(bitsOf(attend(kernels, part)), expected, `queries ${end - queries} to ${end}`);
        }
      });
    }

    it("reads nothing of the cache but the positions a query sees", () => {
      const sequences = [
        { context: 37, queries: 3 },
        { context: 50, queries: 1 },
      ];
      for (const dtype of ["f32", "int8"] as const) {
        const inputs = makeInputs({ ...grouped, dtype, slidingWindow: 10, sequences }, 11);
        const clean = bitsOf(attend(kernels, inputs));
        const tables = numbersOf(inputs.blockTables);
        const columns = inputs.blockTables.shape[1] ?? 0;
        const { blockSize, headSize, kvHeads } = inputs.setting;
        const seen = new Set<number>();
        for (const [s, { context, queries }] of sequences.entries()) {
          for (let p = context - queries - 9; p < context; p++) {
            seen.add((tables[s * columns + Math.floor(p / blockSize)] ?? 0) * blockSize + (p % blockSize));
          }
        }
        // `heads`: rows of positions that a block has.
        const spoil = (tensor: Tensor, heads: number, offsetOf: (index: number) => number): void => {
          const elements = f32Of(tensor);
          for (let i = 0; i < elements.length; i++) {
            const block = Math.floor(i / (heads * blockSize));
            if (!seen.has(block * blockSize + (offsetOf(i) % blockSize))) elements[i] = Number.NaN;
          }
        };
        const { keys, values, scales } = inputs.cache;
        if (scales === null) {
          spoil(keys, kvHeads * headSize, (index) => index);
          spoil(values, kvHeads * headSize, (index) => Math.floor(index / headSize));
        } else {
          spoil(scales, kvHeads * 2, (index) => index);
        }
        assert.deepEqual(bitsOf(attend(kernels, inputs)), clean, dtype);
      }
    });

    it("keeps a value that is not a number from the queries before it", () => {
      for (const dtype of ["f32", "int8"] as const) {
        const inputs = makeInputs({ ...grouped, dtype, blockSize: 80 }, 13);
        const clean = numbersOf(attend(kernels, inputs));
        const block = numbersOf(inputs.blockTables)[0] ?? 0;
        const { blockSize, headSize, kvHeads } = inputs.setting;
        const { values, scales } = inputs.cache;
        for (let h = 0; h < kvHeads; h++) {
          const head = block * kvHeads + h;
          if (scales === null) f32Of(values)[(head * blockSize + 40) * headSize] = Number.NaN;
          else f32Of(scales)[(2 * head + 1) * blockSize + 40] = Number.NaN;
        }
        const out = numbersOf(attend(kernels, inputs));
        const width = grouped.kvHeadOf.length * headSize;
        assert.deepEqual(out.slice(0, 40 * width), clean.slice(0, 40 * width), dtype);
        assert.ok(Number.isNaN(out[40 * width]), dtype);
      }
    });

    it("does not overflow on large scores", () => {
      const inputs = makeInputs({ ...grouped, headSize: 16 }, 5);
      const large = {
        ...inputs,
        q: floats(
          "f32",
          inputs.q.shape,
          numbersOf(inputs.q).map((value) => value * 1e4),
        ),
      };
      assert.ok(numbersOf(attend(kernels, large)).every(Number.isFinite));
    });
  });
});
