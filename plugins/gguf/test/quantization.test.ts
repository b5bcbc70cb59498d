import assert from "node:assert/strict";
import fc from "fast-check";
import { type Checkpoint, f32Of, type LinearWeight, type Operand, rangeSize, ShardloomError } from "shardloom/plugin";
import {
  ArenaAllocator,
  ColumnParallelLinear,
  checkpointOf,
  type LinearModule,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  splitHeads,
  splitUnits,
} from "shardloom/testing";
import { createGgufLoader, ggufQuantization } from "../src/index.js";
import { fixturePath } from "./fixture.js";
import {
  assertShard,
  type BlockType,
  between,
  blockTypes,
  kernels,
  kinds,
  load,
  loadMatrix,
  matrices,
  matrixOf,
  type Place,
  valuesHeld,
} from "./sharding.js";

let checkpoint: Checkpoint;
before(async () => {
  checkpoint = await createGgufLoader().open(fixturePath("formats.gguf"));
});
after(() => checkpoint.close());

/** The fused projections of one layer of the fixture. */
function qkv(layer: number, { rank, worldSize }: Place, valueHeadSize: number): LinearModule {
  const prefix = `model.layers.${layer}.self_attn`;
  return load(checkpoint, { rank, worldSize }, (context) => {
    return new QKVParallelLinear(context, {
      prefix: `${prefix}.qkv_proj`,
      names: { q: `${prefix}.q_proj`, k: `${prefix}.k_proj`, v: `${prefix}.v_proj` },
      inputSize: 256,
      headSize: 8,
      valueHeadSize,
      totalHeads: 2,
      totalKvHeads: 1,
      heads: splitHeads(2, 1, worldSize),
    });
  }).layers;
}

function gateUp(layer: number, { rank, worldSize }: Place): LinearModule {
  const prefix = `model.layers.${layer}.mlp`;
  const { rows, columns } = matrixOf(`${prefix}.gate_proj`);
  const split = splitUnits(rows, 1, worldSize, "rows");
  return load(checkpoint, { rank, worldSize }, (context) => {
    return new MergedColumnParallelLinear(context, {
      prefix: `${prefix}.gate_up_proj`,
      inputSize: columns,
      parts: ["gate_proj", "up_proj"].map((name) => ({ prefix: `${prefix}.${name}`, outputSize: rows, split })),
    });
  }).layers;
}

/** Format and first row of each weight of a layer. */
function storageOf({ method }: LinearModule): (readonly [LinearWeight["format"], number])[] {
  return method.executionWeights().map(({ weight, firstRow }) => [weight.format, firstRow]);
}

function weightOf({ method }: LinearModule): LinearWeight {
  const [only, ...others] = method.executionWeights();
  assert.ok(only !== undefined && others.length === 0, "one weight");
  return only.weight;
}

describe("weights of a GGUF file on one rank of several", () => {
  for (const type of blockTypes) {
    for (const kind of kinds) {
      it(`are those of the whole ${type} matrix to the last bit, as ${kind} layer, at 1, 2, 3 and 4 ranks`, () => {
        const { rows, columns } = matrixOf(matrices[type]);
        for (const worldSize of [1, 2, 3, 4]) {
          const split = splitUnits(kind === "row" ? columns : rows, kind === "row" ? 8 : 1, worldSize, "the matrix");
          for (let rank = 0; rank < worldSize; rank++) {
            const layer = loadMatrix(checkpoint, matrices[type], kind, split, rank);
            assertShard(layer, `${type}, rank ${rank} of ${worldSize}`);
          }
        }
      });
    }
  }

  it("are those of the whole matrix wherever it is cut", () => {
    const cuts = fc
      .record({ type: fc.constantFrom(...blockTypes), kind: fc.constantFrom(...kinds) })
      .chain(({ type, kind }) => {
        const { rows, columns } = matrixOf(matrices[type]);
        const extent = kind === "row" ? columns : rows;
        const edge = fc.oneof(
          fc.nat(extent),
          fc.nat(Math.floor(extent / 16)).map((block) => Math.min(block * 16, extent)),
        );
        return fc
          .tuple(edge, edge)
          .map(([a, b]) => ({ type, kind, extent, start: Math.min(a, b), end: Math.max(a, b) }));
      })
      .filter(({ start, end }) => start < end);
    fc.assert(
      fc.property(cuts, ({ type, kind, extent, start, end }) => {
        const split = [{ start, end }, ...between(0, start), ...between(end, extent)];
        assertShard(loadMatrix(checkpoint, matrices[type], kind, split, 0), `${type}, ${kind} ${start}..${end}`);
      }),
      { numRuns: 1000 },
    );
  });
});

describe("the execution format of a GGUF matrix", () => {
  const formats: Readonly<Record<BlockType, { format: string; blockSize: number; minimums: boolean }>> = {
    Q4_0: { format: "code4", blockSize: 32, minimums: false },
    Q4_1: { format: "code4", blockSize: 32, minimums: true },
    Q4_K: { format: "code4", blockSize: 32, minimums: true },
    Q5_0: { format: "int8", blockSize: 32, minimums: false },
    Q5_1: { format: "int8", blockSize: 32, minimums: true },
    Q5_K: { format: "int8", blockSize: 32, minimums: true },
    Q6_K: { format: "int8", blockSize: 16, minimums: false },
    Q8_0: { format: "int8", blockSize: 32, minimums: false },
  };

  it("holds 4-bit codes in 4 bits and wider ones in 8, with as many scales as the blocks have, in the dtype of the file", () => {
    for (const type of blockTypes) {
      for (const kind of kinds) {
        const { rows, columns } = matrixOf(matrices[type]);
        const whole = between(0, kind === "row" ? columns : rows);
        const weight = weightOf(loadMatrix(checkpoint, matrices[type], kind, whole, 0));
        assert.ok(weight.format === "code4" || weight.format === "int8", type);
        const { format, blockSize, minimums, scales } = weight;
        const valueDType = type.endsWith("_K") ? "f32" : "f16";
        assert.equal(scales.tensor.dtype, valueDType, type);
        assert.equal(minimums?.tensor.dtype ?? valueDType, valueDType, type);
        assert.deepEqual({ format, blockSize, minimums: minimums !== null }, formats[type], type);
        assert.deepEqual(scales.tensor.shape, [rows, columns / blockSize], type);
      }
    }
  });

  it("has scales for half a block where a rank begins or ends in the middle of one", () => {
    const split = between(0, 16, 32);
    for (const rank of [0, 1]) {
      const layer = loadMatrix(checkpoint, matrices.Q4_0, "row", split, rank);
      const weight = weightOf(layer);
      assert.ok(weight.format === "code4");
      assert.deepEqual([weight.blockSize, weight.scales.columns, weight.codes.columns], [16, 1, 8]);
      assertShard(layer, `rank ${rank}`);
    }
  });

  it("is f32 of the exact values, not bf16, where a rank begins or ends anywhere else in a block", () => {
    const split = between(0, 8, 32);
    for (const rank of [0, 1]) {
      const layer = loadMatrix(checkpoint, matrices.Q5_1, "row", split, rank);
      const weight = weightOf(layer);
      assert.ok(weight.format === "dense");
      assert.equal(weight.matrix.tensor.dtype, "f32");
      assertShard(layer, `rank ${rank}`);
    }
  });

  it("is chosen by each rank for its own cut", () => {
    const split = between(0, 32, 80, 96);
    const blockSizes = [0, 1, 2].map((rank) => {
      const weight = weightOf(loadMatrix(checkpoint, matrices.Q4_1, "row", split, rank));
      return weight.format === "code4" ? weight.blockSize : null;
    });
    assert.deepEqual(blockSizes, [32, 16, 16]);
  });
});

describe("fused layers of a GGUF file", () => {
  it("are one weight where the codes and scales of their matrices mean the same, whatever the formats", () => {
    for (const worldSize of [1, 2, 3, 5]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const layer = gateUp(2, { rank, worldSize });
        assert.deepEqual(storageOf(layer), [["int8", 0]], "Q5_0 and Q8_0");
        assertShard(layer, `rank ${rank} of ${worldSize}`);
      }
    }
  });

  it("are several weights side by side where they do not", () => {
    for (const worldSize of [1, 2, 3, 4]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const layer = gateUp(0, { rank, worldSize });
        const upRow = layer.layer.parts[1]?.localOffset ?? 0;
        assert.deepEqual(
          storageOf(layer),
          [
            ["code4", 0],
            ["int8", upRow],
          ],
          "Q4_1 and Q5_0",
        );
        assertShard(layer, `rank ${rank} of ${worldSize}`);
      }
    }
  });

  it("share heads between ranks as unquantized ones do: Q4_K queries, Q5_K keys and Q6_K values", () => {
    for (const worldSize of [1, 2]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const layer = qkv(0, { rank, worldSize }, 4);
        const queries = 16 / worldSize;
        assert.deepEqual(storageOf(layer), [
          ["code4", 0],
          ["int8", queries],
          ["int8", queries + 8],
        ]);
        assertShard(layer, `rank ${rank} of ${worldSize}`);
      }
    }
  });

  it("may have a matrix that is not quantized, in the dtype of unquantized weights", () => {
    for (const worldSize of [1, 2]) {
      for (let rank = 0; rank < worldSize; rank++) {
        const layer = qkv(2, { rank, worldSize }, 8);
        assert.deepEqual(
          storageOf(layer),
          [
            ["code4", 0],
            ["code4", 16 / worldSize],
            ["dense", 16 / worldSize + 8],
          ],
          "Q4_1, Q4_K with scales in f32, then F16",
        );
        const values = layer.method.executionWeights()[2]?.weight;
        assert.equal(values?.format === "dense" ? values.matrix.tensor.dtype : null, "f16");
        assertShard(layer, `rank ${rank} of ${worldSize}`);
      }
    }
  });
});

describe("arithmetic with the weights of a GGUF file", () => {
  const arena = new ArenaAllocator("gguf-test", 1024 * 1024);
  const operand = (rows: number, columns: number, at: (index: number) => number): Operand => {
    const tensor = arena.allocate("operand", "f32", [rows, columns]);
    f32Of(tensor).forEach((_, i, values) => {
      values[i] = at(i);
    });
    return kernels.bind(tensor);
  };
  const valuesOf = ({ tensor }: Operand): number[] => [...f32Of(tensor)];

  it("gives every matrix of a fused layer its columns of the output and of the bias", () => {
    for (const build of [() => qkv(0, { rank: 1, worldSize: 2 }, 4), () => qkv(2, { rank: 0, worldSize: 1 }, 8)]) {
      const { layer, method } = build();
      const outputs = layer.outputSizePerPartition;
      const x = operand(3, 256, (i) => Math.sin(i));
      const bias = operand(1, outputs, (i) => i);
      const [received, expected] = [operand(3, outputs, () => -1), operand(3, outputs, () => -2)];
      method.apply(kernels, received, x, bias, 3);
      const held = valuesHeld(method.executionWeights());
      const matrix = operand(outputs, 256, (i) => held[i] ?? Number.NaN);
      kernels.linear(expected, x, { format: "dense", matrix }, bias, 3);
      assert.deepEqual(valuesOf(received), valuesOf(expected));
    }
  });

  it("looks up rows of an embedding that this rank has, and zeros for others", () => {
    const split = splitUnits(8, 1, 3, "vocabulary");
    const { values } = matrixOf(matrices.Q8_0);
    split.forEach((own, rank) => {
      const { method } = loadMatrix(checkpoint, matrices.Q8_0, "embedding", split, rank);
      const ids = arena.allocate("ids", "i32", [8]);
      new Int32Array(ids.arena.buffer, ids.byteOffset, 8).set([7, 6, 5, 4, 3, 2, 1, 0]);
      const out = operand(8, 256, () => -1);
      assert.ok(method.embed);
      method.embed(kernels, out, kernels.bind(ids), 8, own.start);
      const received = valuesOf(out);
      for (let m = 0; m < 8; m++) {
        const id = 7 - m;
        const has = id >= own.start && id < own.end;
        const wanted = has ? [...values.subarray(id * 256, (id + 1) * 256)] : new Array<number>(256).fill(0);
        assert.deepEqual(received.slice(m * 256, (m + 1) * 256), wanted, `id ${id} on rank ${rank}`);
      }
    });
  });
});

describe("the quantization of GGUF files", () => {
  const failure = (code: string, message: RegExp) => (error: unknown) => {
    assert.ok(error instanceof ShardloomError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  };

  it("is refused to whoever wants to quantize another checkpoint with it", () => {
    const other = checkpointOf([{ name: "w", dtype: "bf16", shape: [2, 2], file: "model.safetensors", read() {} }]);
    const request = { origin: "user", settings: {}, options: {}, checkpoint: other } as const;
    assert.throws(() => ggufQuantization.create(request), failure("UNSUPPORTED_QUANTIZATION", /model\.safetensors/));
  });

  it("takes no options", () => {
    const request = { origin: "checkpoint", settings: {}, options: { type: "nf4" }, checkpoint } as const;
    assert.throws(() => ggufQuantization.create(request), failure("UNKNOWN_OPTION", /"type"/));
  });

  it("names tensor, rank and both shapes where a matrix is not the one its layer wants", () => {
    const prefix = matrices.Q4_K;
    const build = () =>
      load(checkpoint, { rank: 1, worldSize: 2 }, (context) => {
        const split = splitUnits(16, 1, 2, "rows");
        return new ColumnParallelLinear(context, { prefix, inputSize: 128, outputSize: 16, split });
      });
    assert.throws(build, (error) => {
      assert.ok(error instanceof ShardloomError);
      assert.equal(error.code, "SHAPE_MISMATCH");
      assert.match(error.message, /q_proj\.weight to be \[16, 128\] but received \[16, 256\]/);
      assert.equal(error.details.rank, 1);
      return true;
    });
  });

  it("misses a matrix of a fused layer by name", () => {
    const build = () =>
      load(checkpoint, { rank: 0, worldSize: 1 }, (context) => {
        const split = splitUnits(16, 1, 1, "rows");
        const parts = [matrices.Q4_K, "model.layers.9.self_attn.q_proj"].map((prefix) => {
          return { prefix, outputSize: 16, split };
        });
        return new MergedColumnParallelLinear(context, { prefix: "fused", inputSize: 256, parts });
      });
    assert.throws(build, failure("MISSING_TENSOR", /model\.layers\.9\.self_attn\.q_proj\.weight \(shard 1\)/));
  });

  it("leaves a layer alone that is not quantized in the file", () => {
    const { rows, columns } = matrixOf("lm_head");
    const layer = loadMatrix(checkpoint, "lm_head", "column", between(0, rows), 0);
    const weight = weightOf(layer);
    assert.ok(weight.format === "dense");
    assert.deepEqual([weight.matrix.tensor.dtype, rangeSize(layer.layer.inputs)], ["f16", columns]);
    assertShard(layer, "lm_head");
  });
});
