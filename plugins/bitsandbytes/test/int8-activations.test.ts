/** LLM.int8 with quantized activations: an oracle that follows its steps, and ranks that agree to the last bit. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { f16ToF32, f32Of, f32ToF16, type Operand } from "shardloom/plugin";
import {
  ArenaAllocator,
  ColumnParallelLinear,
  checkpointOf,
  createReferenceKernels,
  driveInTurns,
  loadLayers,
  RowParallelLinear,
} from "shardloom/testing";
import { bytesOfTensor, memoryTensor, randomValues, storedConfig, storeInt8, tensorOf } from "./fixture.js";
import { qkv, type Split, splitAt } from "./layer-fixture.js";

const { fround } = Math;
const f16 = (value: number): number => f16ToF32(f32ToF16(value));
const even = (value: number): number => {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2 === 0 ? 0 : 1) : Math.round(value);
};

interface Problem {
  readonly rows: number;
  readonly inputs: number;
  readonly outputs: number;
  readonly x: Float32Array;
  readonly codes: Int8Array;
  readonly scales: Float32Array;
  readonly bias: Float32Array | null;
  readonly threshold: number;
}

function problemOf(
  rows: number,
  inputs: number,
  outputs: number,
  seed: number,
  threshold: number,
  bias = true,
): Problem {
  const tensors = storeInt8("X", [outputs, inputs], randomValues(outputs * inputs, seed));
  const x = randomValues(rows * inputs, seed + 1).map((value) => value * 20);
  // A few outliers, in some columns only.
  for (let i = 0; i < x.length; i += 37 + (seed & 15)) x[i] = (x[i] ?? 0) * 8;
  return {
    rows,
    inputs,
    outputs,
    x,
    codes: new Int8Array(bytesOfTensor(tensors[0] ?? assert.fail()).buffer),
    scales: new Float32Array(bytesOfTensor(tensors[1] ?? assert.fail()).buffer),
    bias: bias ? randomValues(outputs, seed + 2) : null,
    threshold,
  };
}

/** The steps of the method (Dettmers et al. 2022, appendix; bitsandbytes nn/modules.py and csrc/kernels.cu), one number at a time. */
function multiplySlowly({ rows, inputs, outputs, x, codes, scales, bias, threshold }: Problem): Float32Array {
  const limit = threshold === 0 ? Number.POSITIVE_INFINITY : threshold;
  const at = (m: number, i: number): number => f16(x[m * inputs + i] ?? 0);
  const columns = [...new Array(inputs).keys()];
  const outliers = columns.filter((i) => [...new Array(rows).keys()].some((m) => Math.abs(at(m, i)) >= limit));
  return Float32Array.from({ length: rows * outputs }, (_, k) => {
    const [m, n] = [Math.floor(k / outputs), k % outputs];
    const sca = Math.max(0, ...columns.map((i) => Math.abs(at(m, i))).filter((magnitude) => magnitude < limit));
    const factor = sca === 0 ? 0 : fround(127 / sca);
    let sum = 0;
    for (const i of columns) {
      const code = outliers.includes(i) ? 0 : even(fround(at(m, i) * factor));
      sum += code * (codes[n * inputs + i] ?? 0);
    }
    const scaled = fround(fround(fround(sum) * sca) * (scales[n] ?? 0));
    // The biases here are such that a sum in f64 is exact.
    let output = f16(fround(scaled * fround(1 / 16129) + f16(bias?.[n] ?? 0)));
    if (outliers.length > 0) {
      let extra = 0;
      for (const i of outliers) {
        const weight = f16(fround(fround((codes[n * inputs + i] ?? 0) * (scales[n] ?? 0)) * fround(1 / 127)));
        extra += at(m, i) * weight;
      }
      output = f16(fround(output + extra));
    }
    return output;
  });
}

function checkpointFor({ inputs, outputs, codes, scales, bias }: Problem) {
  return checkpointOf([
    memoryTensor("X.weight", "i8", [outputs, inputs], codes),
    memoryTensor("X.SCB", "f32", [outputs], scales),
    ...(bias === null ? [] : [memoryTensor("X.bias", "f32", [outputs], bias)]),
  ]);
}

const kernels = createReferenceKernels();
const memory = new ArenaAllocator("test", 1024 * 1024);

function operand(rows: number, columns: number, fill?: (row: number, column: number) => number): Operand {
  const tensor = memory.allocate("x", "f32", [rows, columns]);
  if (fill !== undefined) f32Of(tensor).set(tensorValues(rows, columns, fill));
  return kernels.bind(tensor);
}

function tensorValues(rows: number, columns: number, fill: (row: number, column: number) => number): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, i) => fill(Math.floor(i / columns), i % columns));
}

/** Runs a problem through a row-parallel layer; the outputs of every rank. */
function multiplyByRows(problem: Problem, split: Split): readonly Float32Array[] {
  const { rows, inputs, outputs, x, threshold } = problem;
  const worldSize = split.length;
  const outs: Operand[] = [];
  const passes = split.map(({ start, end }, rank) => {
    const checkpoint = checkpointFor(problem);
    const quantization = storedConfig(checkpoint, { int8Activations: true, outlierThreshold: threshold });
    const { layers } = loadLayers({ rank, worldSize, checkpoint, quantization, kernels }, (context) => {
      const bias = problem.bias !== null;
      return new RowParallelLinear(context, { prefix: "X", outputSize: outputs, inputSize: inputs, split, bias });
    });
    const own = operand(rows, end - start, (m, i) => x[m * inputs + start + i] ?? 0);
    const out = operand(rows, outputs);
    outs.push(out);
    return layers.forward(out, own, rows);
  });
  driveInTurns(passes);
  return outs.map(({ tensor }) => f32Of(tensor));
}

/** The same through column-parallel layers, their outputs side by side. */
function multiplyByColumns(problem: Problem, split: Split): Float32Array {
  const { rows, inputs, outputs, x, threshold } = problem;
  const all = new Float32Array(rows * outputs);
  const whole = operand(rows, inputs, (m, i) => x[m * inputs + i] ?? 0);
  split.forEach(({ start, end }, rank) => {
    const checkpoint = checkpointFor(problem);
    const quantization = storedConfig(checkpoint, { int8Activations: true, outlierThreshold: threshold });
    const options = { rank, worldSize: split.length, checkpoint, quantization, kernels };
    const { layers } = loadLayers(options, (context) => {
      const bias = problem.bias !== null;
      return new ColumnParallelLinear(context, { prefix: "X", outputSize: outputs, inputSize: inputs, split, bias });
    });
    const out = operand(rows, end - start);
    layers.forward(out, whole, rows);
    f32Of(out.tensor).forEach((value, i) => {
      const [m, n] = [Math.floor(i / (end - start)), i % (end - start)];
      all[m * outputs + start + n] = value;
    });
  });
  return all;
}

describe("LLM.int8 with quantized activations", () => {
  const problems = fc
    .record({
      rows: fc.integer({ min: 1, max: 40 }),
      inputs: fc.integer({ min: 4, max: 90 }),
      outputs: fc.integer({ min: 1, max: 12 }),
      seed: fc.integer({ min: 0, max: 2 ** 30 }),
      threshold: fc.constantFrom(6, 6, 2, 0),
      bias: fc.boolean(),
    })
    .map(({ rows, inputs, outputs, seed, threshold, bias }) => problemOf(rows, inputs, outputs, seed, threshold, bias));

  it("property: one rank computes what the steps of the method give", () => {
    fc.assert(
      fc.property(problems, (problem) => {
        const expected = multiplySlowly(problem);
        assert.deepEqual(multiplyByRows(problem, splitAt(problem.inputs))[0], expected);
        assert.deepEqual(multiplyByColumns(problem, splitAt(problem.outputs)), expected);
      }),
      { numRuns: 40 },
    );
  });

  it("property: row-parallel, every rank has the outputs of a single rank, to the bit", () => {
    fc.assert(
      fc.property(problems, fc.array(fc.nat(), { minLength: 1, maxLength: 4 }), (problem, cuts) => {
        const ends = [...new Set(cuts.map((value) => 1 + (value % (problem.inputs - 1))))].sort((a, b) => a - b);
        const [expected] = multiplyByRows(problem, splitAt(problem.inputs));
        for (const received of multiplyByRows(problem, splitAt(problem.inputs, ...ends)))
          assert.deepEqual(received, expected);
      }),
      { numRuns: 60 },
    );
  });

  it("4 ranks of a larger layer, with outliers on one rank only and on none", () => {
    for (const outlier of [30, 0]) {
      const wide = problemOf(33, 256, 48, 5, 6);
      const problem = { ...wide, x: wide.x.map((value) => Math.max(-5, Math.min(5, value))) };
      problem.x[256 + 200] = outlier;
      const [expected] = multiplyByRows(problem, splitAt(256));
      const ranks = multiplyByRows(problem, splitAt(256, 64, 128, 192));
      assert.equal(ranks.length, 4);
      for (const received of ranks) assert.deepEqual(received, expected);
      assert.deepEqual(expected, multiplySlowly(problem));
    }
  });

  it("column-parallel is exact without meeting anybody", () => {
    const problem = problemOf(5, 64, 20, 7, 6);
    assert.deepEqual(multiplyByColumns(problem, splitAt(20, 3, 11)), multiplyByColumns(problem, splitAt(20)));
  });

  it("an element of exactly the threshold is an outlier; the row's scale leaves it out, but not its column's others", () => {
    const problem: Problem = {
      rows: 2,
      inputs: 2,
      outputs: 1,
      // Column 0 has the outlier 6 in row 0; in row 1 its 5 is the largest magnitude below the threshold.
      x: Float32Array.of(6, 1, 5, 1),
      codes: Int8Array.of(127, 127),
      scales: Float32Array.of(127),
      bias: null,
      threshold: 6,
    };
    // A weight of 127, in f16, for each input. Row 0: scale 1, code 127; row 1: scale 5, code 25 (25.4).
    const weight = f16(fround(127 * 127 * fround(1 / 127)));
    assert.equal(weight, 127);
    const second = f16(fround(fround(fround(25 * 127) * 5) * 127) * fround(1 / 16129));
    const expected = [f16(6 * weight + 127), f16(5 * weight + second)];
    assert.deepEqual([...(multiplyByRows(problem, splitAt(2))[0] ?? [])], expected);
    assert.deepEqual([...(multiplyByRows(problem, splitAt(2, 1))[1] ?? [])], expected);
  });

  it("a row of zeros gives the bias, and no NaN", () => {
    const problem = { ...problemOf(2, 8, 3, 1, 6), x: new Float32Array(16) };
    const expected = [...(problem.bias ?? [])].map(f16);
    assert.deepEqual([...(multiplyByRows(problem, splitAt(8, 3))[0] ?? [])], [...expected, ...expected]);
  });

  it("in a layer that is only partly int8, the other parts are multiplied as ever", () => {
    const q = randomValues(16 * 8, 1);
    const tensors = [
      memoryTensor("a.q_proj.weight", "f32", [16, 8], q),
      ...storeInt8("a.k_proj", [8, 8], randomValues(64, 2)),
      ...storeInt8("a.v_proj", [8, 8], randomValues(64, 3)),
    ];
    const checkpoint = checkpointOf(tensors);
    const quantization = storedConfig(checkpoint, { int8Activations: true }, { llm_int8_skip_modules: ["q_proj"] });
    const { linears } = loadLayers(
      { rank: 0, worldSize: 1, checkpoint, quantization, kernels },
      qkv("a", 8, { heads: 4, kvHeads: 2, headSize: 4 }),
    );
    const { method } = linears[0] ?? assert.fail();
    const values = randomValues(3 * 8, 4);
    const [x, out] = [operand(3, 8, (m, i) => values[m * 8 + i] ?? 0), operand(3, 32)];
    method.apply(kernels, out, x, null, 3);
    const received = f32Of(out.tensor);
    for (let m = 0; m < 3; m++) {
      let dot = 0;
      for (let i = 0; i < 8; i++) dot += (values[m * 8 + i] ?? 0) * (q[i] ?? 0);
      assert.equal(received[m * 32], fround(dot));
    }
    const k = {
      ...problemOf(3, 8, 8, 0, 6, false),
      x: values,
      codes: new Int8Array(bytesOfTensor(tensorOf(checkpoint, "a.k_proj.weight")).buffer),
      scales: new Float32Array(bytesOfTensor(tensorOf(checkpoint, "a.k_proj.SCB")).buffer),
    };
    const expected = multiplySlowly(k);
    for (let m = 0; m < 3; m++)
      assert.deepEqual(received.slice(m * 32 + 16, m * 32 + 24), expected.slice(m * 8, m * 8 + 8));
  });

  it("by default weights are dequantized and activations left alone", () => {
    const checkpoint = checkpointOf(storeInt8("X", [4, 8], randomValues(32, 1)));
    const { layers } = loadLayers(
      { rank: 0, worldSize: 2, checkpoint, quantization: storedConfig(checkpoint) },
      (context) => {
        return new RowParallelLinear(context, { prefix: "X", outputSize: 4, inputSize: 8, split: splitAt(8, 4) });
      },
    );
    assert.equal(layers.method.applyReduced, undefined);
  });
});
