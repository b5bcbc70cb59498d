/** The plugin of docs/quantization-plugin.md in layers of every kind, of any size and cut. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Checkpoint, CheckpointTensor, QuantizationConfig } from "shardloom/plugin";
import {
  ColumnParallelLinear,
  checkpointOf,
  compareShard,
  type LayerContext,
  loadLayers,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  ReplicatedLinear,
  RowParallelLinear,
  splitHeads,
  splitUnits,
} from "shardloom/testing";
import { ShardloomError } from "../../src/core/errors.js";
import { createRegistries, registerPlugin } from "../../src/loading/plugins.js";
import type { StoredTensor } from "../loading/rewritten-model.js";
import { type TernaryMatrix, ternaryTensors, toTernary } from "./ternary-checkpoint.js";
import { plugin } from "./ternary-plugin/index.js";

type Split = ReturnType<typeof splitUnits>;

/** Numbers that look like weights; the same for the same seed. */
function matrixOf(rows: number, columns: number, blockRows: number, seed: number): TernaryMatrix {
  let state = seed >>> 0;
  const weights = Float32Array.from({ length: rows * columns }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
  return toTernary(weights, columns, blockRows);
}

function inMemory(tensors: readonly (readonly [string, StoredTensor])[]): Checkpoint {
  return checkpointOf(
    tensors.map(([name, { dtype, shape, bytes }]): CheckpointTensor => {
      const read = (destination: Uint8Array, byteOffset: number): void => {
        assert.ok(byteOffset >= 0 && byteOffset + destination.length <= bytes.length, `${name}: read out of bounds`);
        destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
      };
      return { name, dtype, shape, file: "memory", read };
    }),
  );
}

function configOf(checkpoint: Checkpoint, blockRows: number): QuantizationConfig {
  const { quantization } = createRegistries();
  registerPlugin({ ...createRegistries(), quantization }, plugin);
  const settings = { quant_method: "ternary", block_rows: blockRows };
  return quantization.create({ method: "ternary", origin: "checkpoint", settings, options: {} }, checkpoint);
}

/** Loads layers on every rank and compares every shard with its slice of the matrices, by module. */
function expectSlices(
  worldSize: number,
  blockRows: number,
  tensors: readonly (readonly [string, StoredTensor])[],
  matrices: Readonly<Record<string, TernaryMatrix>>,
  build: (context: LayerContext) => unknown,
): void {
  const checkpoint = inMemory(tensors);
  for (let rank = 0; rank < worldSize; rank++) {
    const quantization = configOf(checkpoint, blockRows);
    const { linears } = loadLayers({ rank, worldSize, checkpoint, quantization }, build);
    assert.equal(linears.length, 1);
    for (const linear of linears) {
      assert.equal(linear.method.executionWeights()[0]?.weight.format, "code4");
      const wholeOf = ({ prefix }: { readonly prefix: string }) => matrices[prefix]?.values ?? assert.fail(prefix);
      assert.equal(compareShard(linear, wholeOf), null, `rank ${rank} of ${worldSize}`);
    }
  }
}

describe("property: the ternary plugin, any shape, block size and cut", () => {
  const sizes = {
    columns: fc.integer({ min: 1, max: 4 }).map((units) => units * 16),
    blockRows: fc.integer({ min: 1, max: 40 }),
    worldSize: fc.integer({ min: 1, max: 6 }),
    seed: fc.integer(),
  };

  it("column, replicated and row-parallel layers", () => {
    const cases = fc.record({ ...sizes, rows: fc.integer({ min: 6, max: 60 }) });
    fc.assert(
      fc.property(cases, ({ columns, blockRows, worldSize, seed, rows: outputSize }) => {
        const inputSize = columns * worldSize;
        const whole = matrixOf(outputSize, inputSize, blockRows, seed);
        const tensors = ternaryTensors("X", [whole], inputSize);
        const options = { prefix: "X", inputSize, outputSize };
        const byRows = splitUnits(outputSize, 1, worldSize, "rows");
        const byColumns = splitUnits(inputSize, 16, worldSize, "columns");
        for (const build of [
          (context: LayerContext) => new ReplicatedLinear(context, options),
          (context: LayerContext) => new ColumnParallelLinear(context, { ...options, split: byRows }),
          (context: LayerContext) => new RowParallelLinear(context, { ...options, split: byColumns }),
        ]) {
          expectSlices(worldSize, blockRows, tensors, { X: whole }, build);
        }
      }),
      { numRuns: 60 },
    );
  });

  it("merged layers, whose parts are tensors of their own or fused on disk", () => {
    const part = fc.integer({ min: 6, max: 60 });
    const cases = fc.record({ ...sizes, parts: fc.array(part, { minLength: 2, maxLength: 4 }), fused: fc.boolean() });
    fc.assert(
      fc.property(cases, ({ columns, blockRows, worldSize, seed, parts: rows, fused }) => {
        const matrices = rows.map((count, i) => matrixOf(count, columns, blockRows, seed + i));
        const tensors = fused
          ? ternaryTensors("fused", matrices, columns)
          : matrices.flatMap((matrix, i) => ternaryTensors(`part${i}`, [matrix], columns));
        const parts = rows.map((outputSize, i) => {
          const split: Split = splitUnits(outputSize, 1, worldSize, "rows");
          return { prefix: `part${i}`, outputSize, split };
        });
        const byName = Object.fromEntries(matrices.map((matrix, i) => [`part${i}`, matrix]));
        expectSlices(worldSize, blockRows, tensors, byName, (context) => {
          return new MergedColumnParallelLinear(context, { prefix: "fused", inputSize: columns, parts });
        });
      }),
      { numRuns: 80 },
    );
  });

  it("QKV, with replicated heads, values of another size, fused on disk or not", () => {
    const small = fc.integer({ min: 1, max: 4 });
    const headSize = fc.integer({ min: 1, max: 24 });
    const heads = { kvHeads: small, group: small, headSize, valueHeadSize: headSize };
    fc.assert(
      fc.property(fc.record({ ...sizes, ...heads, fused: fc.boolean() }), (shape) => {
        const { columns, blockRows, worldSize, seed, kvHeads, group, headSize, valueHeadSize, fused } = shape;
        const totalHeads = kvHeads * group;
        fc.pre(worldSize <= totalHeads);
        const q = matrixOf(totalHeads * headSize, columns, blockRows, seed);
        const k = matrixOf(kvHeads * headSize, columns, blockRows, seed + 1);
        const v = matrixOf(kvHeads * valueHeadSize, columns, blockRows, seed + 2);
        const tensors = fused
          ? ternaryTensors("qkv", [q, k, v], columns)
          : Object.entries({ q, k, v }).flatMap(([name, matrix]) => ternaryTensors(name, [matrix], columns));
        expectSlices(worldSize, blockRows, tensors, { q, k, v }, (context) => {
          return new QKVParallelLinear(context, {
            prefix: "qkv",
            names: { q: "q", k: "k", v: "v" },
            inputSize: columns,
            headSize,
            valueHeadSize,
            totalHeads,
            totalKvHeads: kvHeads,
            heads: splitHeads(totalHeads, kvHeads, worldSize),
          });
        });
      }),
      { numRuns: 80 },
    );
  });
});

describe("the ternary plugin: columns that a rank cannot hold", () => {
  const whole = matrixOf(8, 64, 32, 1);
  const load = (split: Split) => (): void => {
    expectSlices(2, 32, ternaryTensors("X", [whole], 64), { X: whole }, (context) => {
      return new RowParallelLinear(context, { prefix: "X", inputSize: 64, outputSize: 8, split });
    });
  };
  const split = (...bounds: readonly [number, number, number]): Split => [
    { start: bounds[0], end: bounds[1] },
    { start: bounds[1], end: bounds[2] },
  ];
  const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

  it("too few for the kernels, or cut inside a byte, are refused", () => {
    assert.throws(load(split(0, 24, 64)), code("TERNARY_COLUMNS"));
    assert.throws(load(split(2, 18, 34)), code("INEXACT_PACKING"));
    load(split(0, 48, 64))();
  });
});
