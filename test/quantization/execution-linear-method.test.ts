import assert from "node:assert/strict";
import { ArenaAllocator } from "../../src/core/arena.js";
import { f32ToF16 } from "../../src/core/dtype.js";
import { bytesOf, f32Of, type Tensor, u16Of } from "../../src/core/tensor.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import type { LinearLayer, LinearPart, ParameterSpec } from "../../src/quantization/contract.js";
import {
  Codebooks,
  ExecutionLinearMethod,
  type ExecutionStorage,
  executionSegments,
} from "../../src/quantization/execution-linear-method.js";

const INPUTS = 32;
const ROWS = 2;
const DENSE: ExecutionStorage = { kind: "dense", dtype: "f32" };
const ROW_SCALES: ExecutionStorage = { kind: "rowScales", multiplier: 0.5, minimums: false, valueDType: "f32" };
const CODE4: ExecutionStorage = {
  kind: "blocks",
  execution: "code4",
  blockSize: 16,
  minimums: true,
  valueDType: "f16",
  codebook: Array.from({ length: 16 }, (_, code) => code - 8),
  multiplier: 1,
};

/** A fused layer of matrices "a", "b", ... with two rows each, whole on one rank. */
function layerOf(count: number): LinearLayer {
  const parts = Array.from({ length: count }, (_, i): LinearPart => {
    const prefix = String.fromCharCode(97 + i);
    return { prefix, shardId: i, outputSize: ROWS, rows: { start: 0, end: ROWS }, localOffset: i * ROWS };
  });
  const inputs = { start: 0, end: INPUTS };
  const whole = { inputSize: INPUTS, inputs, outputSizePerPartition: count * ROWS, rank: 0, worldSize: 1 };
  return { prefix: "fused", kind: "merged", parts, ...whole, dtype: "f32" };
}

describe("the linear method of weights in execution formats", () => {
  it("makes one weight of neighbours in the same storage, and of others one each", () => {
    const storages = [DENSE, { ...DENSE }, ROW_SCALES, DENSE];
    const layer = layerOf(4);
    const segments = executionSegments(layer, (part) => storages[layer.parts.indexOf(part)] ?? DENSE);
    assert.deepEqual(
      segments.map(({ storage, parts, firstRow, rows }) => [
        storage.kind,
        parts.map((p) => p.prefix).join(),
        firstRow,
        rows,
      ]),
      [
        ["dense", "a,b", 0, 4],
        ["rowScales", "c", 4, 2],
        ["dense", "d", 6, 2],
      ],
    );
  });

  it("multiplies with what its parameters hold: plain numbers, codes with a scale a row, codes in blocks with minimums", () => {
    const layer = layerOf(3);
    const storages = [DENSE, ROW_SCALES, CODE4];
    const segments = executionSegments(layer, (part) => storages[layer.parts.indexOf(part)] ?? DENSE);
    const method = new ExecutionLinearMethod(segments, new Codebooks());
    const specs: ParameterSpec[] = [];
    method.createWeights({ addParameter: (spec) => specs.push(spec) }, layer);
    assert.deepEqual(
      specs.map(({ name, dtype, shape, parts }) => [name, dtype, shape.join(), parts?.join()]),
      [
        ["weight", "f32", "2,32", "0"],
        ["weight.codes", "i8", "2,32", "1"],
        ["weight.scales", "f32", "2,1", "1"],
        ["weight.codes", "u8", "2,16", "2"],
        ["weight.scales", "f16", "2,2", "2"],
        ["weight.minimums", "f16", "2,2", "2"],
      ],
    );
    const memory = new ArenaAllocator("test", 4096);
    const tensors = new Map(
      specs.map((spec) => [`${spec.name} ${spec.parts}`, memory.allocate(spec.name, spec.dtype, spec.shape)]),
    );
    const stored = (name: string): Tensor => {
      const tensor = tensors.get(name);
      assert.ok(tensor !== undefined, name);
      return tensor;
    };
    f32Of(stored("weight 0")).fill(2);
    bytesOf(stored("weight.codes 1")).fill(256 - 4);
    f32Of(stored("weight.scales 1")).set([3, 5]);
    // Codes 9 and 7 in turn, which stand for 1 and -1, times 4, and 0.25.
    bytesOf(stored("weight.codes 2")).fill(0x97);
    u16Of(stored("weight.scales 2")).fill(f32ToF16(4));
    u16Of(stored("weight.minimums 2")).fill(f32ToF16(0.25));

    const kernels = createReferenceKernels();
    method.processWeightsAfterLoading({
      kernels,
      allocate: (name, dtype, shape) => memory.allocate(name, dtype, shape),
      tensor: (name, part) => stored(`${name} ${part}`),
    });
    assert.deepEqual(
      method.executionWeights().map(({ firstRow, weight }) => [firstRow, weight.format]),
      [
        [0, "dense"],
        [2, "int8"],
        [4, "code4"],
      ],
    );
    const [x, out] = [memory.allocate("x", "f32", [1, INPUTS]), memory.allocate("out", "f32", [1, 3 * ROWS])];
    f32Of(x).forEach((_, i, values) => {
      values[i] = i % 2 === 0 ? 1 : 2;
    });
    method.apply(kernels, kernels.bind(out), kernels.bind(x), null, 1);
    // x has 16 ones and 16 twos.
    const blocks = 4 * (16 - 32) + 0.25 * 48;
    assert.deepEqual([...f32Of(out)], [2 * 48, 2 * 48, -4 * 3 * 0.5 * 48, -4 * 5 * 0.5 * 48, blocks, blocks]);
  });
});
