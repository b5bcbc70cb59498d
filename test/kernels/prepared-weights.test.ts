import assert from "node:assert/strict";
import fc from "fast-check";
import { placeRows } from "../../src/checkpoint/row-groups.js";
import { bytesOf, f32Of, type Tensor } from "../../src/core/tensor.js";
import {
  type Activations,
  activationBlock,
  type IntegerLevel,
  roundActivations,
  roundBlock,
  roundCodebook,
} from "../../src/kernels/activation-levels.js";
import { dequantize } from "../../src/kernels/execution-format.js";
import type { Kernels, LinearWeight } from "../../src/kernels/kernels.js";
import { createNativeKernels } from "../../src/kernels/native.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import {
  apply,
  type BlockWeight,
  blockings,
  bound,
  type Case,
  codesOf,
  type Extents,
  FORMATS,
  type Format,
  makeCase,
  makeWeight,
} from "./block-weight.js";
import {
  assertClose,
  bitsOf,
  floats,
  forEachIsa,
  integers,
  loadedAddon,
  numbersOf,
  Random,
  scoped,
  zeros,
} from "./tensors.js";

const LEVELS = ["int16", "int8"] as const;

const native = { int16: createNativeKernels("int16"), int8: createNativeKernels("int8") };
const reference = { int16: createReferenceKernels("int16"), int8: createReferenceKernels("int8") };

function copied(tensor: Tensor): Tensor {
  const copy = zeros(tensor.dtype, tensor.shape, tensor.name);
  bytesOf(copy).set(bytesOf(tensor));
  return copy;
}

/** Preparing moves bytes about, so every weight that is prepared has bytes of its own. */
function fresh(weight: BlockWeight): BlockWeight {
  const minimums = weight.minimums === null ? null : copied(weight.minimums);
  return { ...weight, codes: copied(weight.codes), scales: copied(weight.scales), minimums };
}

/** Calls `use` with a prepared weight. */
function withPrepared(kernels: Kernels, weight: BlockWeight, use: (prepared: LinearWeight) => void): void {
  scoped(kernels, (bind) => {
    const prepared = kernels.prepareLinear(bound(bind, fresh(weight)));
    try {
      use(prepared);
    } finally {
      kernels.releaseLinear(prepared);
    }
  });
}

function outputsOf({ codes }: BlockWeight): number {
  return codes.shape[0] ?? 0;
}

function applyPrepared(kernels: Kernels, sample: Case): Tensor {
  let out = zeros("f32", [0]);
  withPrepared(kernels, sample.weight, (prepared) => {
    out = apply(kernels, sample, outputsOf(sample.weight), () => prepared);
  });
  return out;
}

function onPortable<Result>(use: () => Result): Result {
  const addon = loadedAddon();
  const isa = addon.isa;
  addon.selectIsa("portable");
  try {
    return use();
  } finally {
    addon.selectIsa(isa);
  }
}

function valuesOf(weight: BlockWeight): Float32Array {
  let values: Float32Array = new Float32Array();
  scoped(reference.int16, (bind) => {
    values = dequantize(bound(bind, weight));
  });
  return values;
}

/** The largest magnitude of a sum over an output's terms, by index in the output; 0 in the margins. */
function magnitudes({ weight, x, bias, rows, margins: [before, after] }: Case): Float64Array {
  const outputs = outputsOf(weight);
  const inputs = x.shape[1] ?? 0;
  const [xs, ws] = [f32Of(x), valuesOf(weight)];
  const minimums = weight.minimums === null ? null : numbersOf(weight.minimums);
  const width = before + outputs + after;
  const found = new Float64Array(rows * width);
  for (let m = 0; m < rows; m++) {
    for (let n = 0; n < outputs; n++) {
      let sum = Math.abs(bias === null ? 0 : (f32Of(bias)[before + n] ?? 0));
      for (let k = 0; k < inputs; k++) {
        const minimum = minimums?.[Math.floor((n * inputs + k) / weight.blockSize)] ?? 0;
        // A code of x may round up from half a step.
        sum +=
          (Math.abs(xs[m * inputs + k] ?? 0) + 1 / 127) * (Math.abs(ws[n * inputs + k] ?? 0) + 2 * Math.abs(minimum));
      }
      found[m * width + before + n] = sum;
    }
  }
  return found;
}

/** Each block adds two terms, with one rounding each, to a sum in f32. */
function roundingBound(sample: Case): (index: number) => number {
  const sums = magnitudes(sample);
  const blocks = (sample.x.shape[1] ?? 0) / activationBlock(sample.weight.blockSize);
  return (index) => (2 * blocks + 6) * 2 ** -24 * (sums[index] ?? 0);
}

const anyExtents = fc.record({
  blocking: blockings,
  outputs: fc.integer({ min: 1, max: 67 }),
  rows: fc.integer({ min: 1, max: 37 }),
  minimums: fc.boolean(),
  values: fc.constantFrom("f32", "f16"),
  multiplier: fc.constantFrom(1, Math.fround(1 / 127)),
  before: fc.nat(5),
  after: fc.nat(3),
});

function forEachFormatAndLevel(declare: (format: Format, level: IntegerLevel) => void): void {
  for (const format of FORMATS) for (const level of LEVELS) declare(format, level);
}

describe("linear with prepared weights", () => {
  forEachIsa(() => {
    forEachFormatAndLevel((format, level) => {
      const kernels = native[level];

      it(`is what the level defines, at any size, inside any columns (${format}, ${level})`, () => {
        fc.assert(
          fc.property(fc.integer({ min: 0 }), anyExtents, (seed, { blocking, rows, before, after, ...extents }) => {
            const [blockSize, inputs] = blocking;
            const sample = makeCase(seed, format, rows, { ...extents, blockSize, inputs }, [before, after]);
            const received = applyPrepared(kernels, sample);
            assertClose(received, applyPrepared(reference[level], sample), roundingBound(sample));
            assert.deepEqual(bitsOf(received), bitsOf(onPortable(() => applyPrepared(kernels, sample))));
          }),
          { numRuns: 30 },
        );
      });

      it(`gives the bits of every other instruction set around every boundary (${format}, ${level})`, () => {
        const check = (rows: number, outputs: number, inputs: number, blockSize: number): void => {
          const values = rows % 3 === 0 ? "f16" : "f32";
          const extents = { outputs, inputs, blockSize, minimums: rows % 2 === 0, values } as const;
          const sample = makeCase(rows, format, rows, extents);
          const received = bitsOf(applyPrepared(kernels, sample));
          const what = `${rows} rows, [${outputs}, ${inputs}] in blocks of ${blockSize}`;
          assert.deepEqual(received, bitsOf(onPortable(() => applyPrepared(kernels, sample))), what);
        };
        for (const rows of [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 24, 25, 31, 37]) {
          for (const blockSize of [16, 32, 64]) check(rows, 18, 3 * blockSize, blockSize);
        }
        for (const outputs of [1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 97]) {
          for (const rows of [1, 2, 13]) check(rows, outputs, 128, 64);
        }
        for (const inputs of [16, 1040, 4112]) {
          for (const rows of [1, 3]) {
            check(rows, 17, inputs, 16);
            check(rows, 17, inputs, inputs);
          }
        }
        check(2, 33, 14336, 64);
      });

      it(`gives a row the same bits alone and among any number of rows (${format}, ${level})`, () => {
        for (const [inputs, blockSize] of [
          [80, 16],
          [1120, 32],
          [1088, 64],
        ] as const) {
          const all = makeCase(inputs, format, 37, { outputs: 39, inputs, blockSize, minimums: true });
          withPrepared(kernels, all.weight, (prepared) => {
            const together = bitsOf(apply(kernels, all, 39, () => prepared));
            for (let rows = 1; rows < 37; rows++) {
              const x = { ...all.x, shape: [rows, inputs] };
              const some = bitsOf(apply(kernels, { ...all, x, rows }, 39, () => prepared));
              assert.deepEqual(some, together.slice(0, some.length), `${rows} of 37 rows, ${inputs} inputs`);
            }
          });
        }
      });

      it(`is near what f32 gives (${format}, ${level})`, () => {
        for (const minimums of [false, true]) {
          const sample = makeCase(2, format, 3, { outputs: 40, inputs: 2048, blockSize: 64, minimums });
          const exact = createReferenceKernels();
          const wanted = numbersOf(apply(exact, sample, 40, (bind) => bound(bind, sample.weight)));
          const received = numbersOf(applyPrepared(kernels, sample));
          const norm = (values: readonly number[]) => Math.hypot(...values) / Math.sqrt(values.length);
          const error = norm(received.map((value, i) => value - (wanted[i] ?? Number.NaN))) / norm(wanted);
          assert.ok(error < { int16: 2e-4, int8: 1e-2 }[level], `relative error ${error}`);
        }
      });

      it(`sums extreme codes without overflow (${format}, ${level})`, () => {
        const bytes = format === "code4" ? [0x00, 0xff, 0x0f] : [0x80, 0x7f, 0xff];
        const codebook = floats("f32", [16], [-1, ...Array.from({ length: 14 }, () => 0.3), 1]);
        for (const [i, byte] of bytes.entries()) {
          for (const [rows, sign] of [
            [1, 1],
            [7, -1],
          ] as const) {
            const sample = makeCase(2 * i, format, rows, { outputs: 33, inputs: 4096, blockSize: 64 });
            f32Of(sample.weight.scales).fill(0.5);
            f32Of(sample.x).fill(sign * 3);
            const weight = { ...sample.weight, codebook, codes: codesOf(format, 33, 4096, () => byte) };
            const extreme = { ...sample, weight };
            assertClose(
              applyPrepared(kernels, extreme),
              applyPrepared(reference[level], extreme),
              roundingBound(extreme),
            );
            assert.ok(numbersOf(applyPrepared(kernels, extreme)).every(Number.isFinite));
          }
        }
      });

      it(`keeps what is no number in its own row and output (${format}, ${level})`, () => {
        const sample = makeCase(4, format, 15, { outputs: 35, inputs: 128, blockSize: 32, minimums: true });
        const clean = numbersOf(applyPrepared(kernels, sample));
        const [scales, minimums] = [f32Of(sample.weight.scales), f32Of(sample.weight.minimums ?? sample.x)];
        scales[3 * 4] = Number.NaN;
        scales[34 * 4 + 3] = Number.POSITIVE_INFINITY;
        minimums[18 * 4 + 1] = Number.NEGATIVE_INFINITY;
        f32Of(sample.x)[5 * 128 + 127] = Number.NaN;
        f32Of(sample.x)[13 * 128] = Number.NEGATIVE_INFINITY;
        for (const [index, value] of numbersOf(applyPrepared(kernels, sample)).entries()) {
          const [m, n] = [Math.floor(index / 35), index % 35];
          if (m === 5 || m === 13 || n === 3) assert.ok(Number.isNaN(value), `row ${m}, output ${n}`);
          else if (n === 18 || n === 34) assert.ok(!Number.isFinite(value), `row ${m}, output ${n}`);
          else assert.equal(value, clean[index], `row ${m}, output ${n}`);
        }
      });

      it(`takes tiny activations, and the tiniest for zeros (${format}, ${level})`, () => {
        const sample = makeCase(2, format, 2, { outputs: 20, inputs: 64, blockSize: 32 });
        const xs = f32Of(sample.x);
        for (let k = 0; k < 64; k++) xs[k] = (xs[k] ?? 0) * 2 ** -80;
        for (let k = 64; k < 128; k++) xs[k] = (k % 3) * 2 ** -140;
        const out = applyPrepared(kernels, sample);
        assert.deepEqual(bitsOf(out), bitsOf(onPortable(() => applyPrepared(kernels, sample))));
        const [first, second] = [numbersOf(out).slice(0, 20), numbersOf(out).slice(20)];
        assert.ok(first.some((value) => value !== 0));
        assert.ok(second.every((value) => value === 0));
      });
    });

    it("multiplies at one of the levels with activations auto", () => {
      const auto = createNativeKernels("auto");
      for (const format of FORMATS) {
        for (const rows of [1, 3, 13, 37]) {
          const sample = makeCase(rows, format, rows, { outputs: 37, inputs: 256, blockSize: 64 });
          const exact = createNativeKernels("f32");
          const levels = [
            ...LEVELS.map((level) => bitsOf(applyPrepared(native[level], sample))),
            bitsOf(apply(exact, sample, 37, (bind) => bound(bind, sample.weight))),
          ].map((bits) => bits.join());
          assert.ok(levels.includes(bitsOf(applyPrepared(auto, sample)).join()), `${format}, ${rows} rows`);
        }
      }
    });

    it("computes outputs of zero inputs as the bias", () => {
      for (const format of FORMATS) {
        const sample = makeCase(1, format, 9, { outputs: 10, inputs: 0, blockSize: 16 });
        const biases = numbersOf(sample.bias ?? sample.x);
        const expected = Array.from({ length: 9 }, () => biases).flat();
        assert.deepEqual(numbersOf(applyPrepared(native.int16, sample)), expected);
      }
    });
  });
});

describe("embedding with prepared tables", () => {
  forEachIsa(() => {
    it("gives the values of the weight bit for bit, wherever the rows went", () => {
      const extents = fc.record({
        blocking: blockings,
        outputs: fc.integer({ min: 1, max: 67 }),
        minimums: fc.boolean(),
      });
      const formats = fc.constantFrom(...FORMATS);
      fc.assert(
        fc.property(fc.integer(), formats, extents, (seed, format, { blocking: [blockSize, inputs], ...others }) => {
          const weight = makeWeight(new Random(seed), format, { ...others, blockSize, inputs, multiplier: 0.25 });
          const { outputs } = others;
          const ids = integers([outputs + 1], [...Array(outputs + 1).keys()], "ids");
          const out = zeros("f32", [outputs + 1, inputs]);
          withPrepared(native.int16, weight, (table) => {
            assert.equal(table.format, "prepared");
            scoped(native.int16, (bind) => native.int16.embedding(bind(out), bind(ids), table, outputs + 1, 1));
          });
          const values = zeros("f32", [outputs, inputs]);
          f32Of(values).set(valuesOf(weight));
          const nothing = Array.from({ length: inputs }, () => 0);
          assert.deepEqual(bitsOf(out), [...nothing, ...bitsOf(values)]);
        }),
        { numRuns: 60 },
      );
    });
  });
});

describe("prepareLinear", () => {
  const extents: Extents = { outputs: 5, inputs: 64, blockSize: 32 };

  const formatOf = (activations: Activations, weight: BlockWeight): string => {
    let format = "";
    withPrepared(createNativeKernels(activations), weight, (prepared) => {
      format = prepared.format;
    });
    return format;
  };

  it("leaves a weight as it is where only the exact kernels can take it", () => {
    const code4 = makeWeight(new Random(1), "code4", extents);
    assert.equal(formatOf("f32", code4), "code4");
    assert.equal(formatOf("auto", code4), "prepared");
    assert.equal(formatOf("int16", makeWeight(new Random(1), "int8", { ...extents, inputs: 7, blockSize: 7 })), "int8");
    for (const entry of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const codebook = copied(code4.codebook);
      f32Of(codebook)[3] = entry;
      assert.equal(formatOf("int8", { ...code4, codebook }), "code4");
    }
    scoped(native.int16, (bind) => {
      const dense = { format: "dense", matrix: bind(zeros("bf16", [3, 4])) } as const;
      assert.equal(native.int16.prepareLinear(dense), dense);
    });
  });

  it("keeps a weight usable when its operands are released, and unusable once it is released itself", () => {
    const weight = makeWeight(new Random(3), "code4", extents);
    scoped(native.int16, (bind) => {
      const [out, x] = [bind(zeros("f32", [1, 5])), bind(zeros("f32", [1, 64]))];
      let prepared: LinearWeight | undefined;
      scoped(native.int16, (bindForNow) => {
        prepared = native.int16.prepareLinear(bound(bindForNow, fresh(weight)));
      });
      assert.ok(prepared !== undefined);
      native.int16.linear(out, x, prepared, null, 1);
      native.int16.releaseLinear(prepared);
      const released = prepared;
      assert.throws(() => native.int16.linear(out, x, released, null, 1), /expected a prepared weight/);
      assert.throws(() => native.int16.embedding(x, out, released, 1, 0), TypeError);
      assert.throws(() => native.int16.releaseLinear(released), /expected a prepared weight/);
    });
  });

  it("takes codes that lie in groups of rows, and multiplies as with those it arranges itself", () => {
    for (const format of FORMATS) {
      for (const outputs of [5, 16, 48, 67]) {
        const sample = makeCase(outputs, format, 3, { ...extents, outputs, minimums: true });
        const { codes } = sample.weight;
        const inGroups = fresh(sample.weight);
        const rows = bytesOf(codes);
        const groups = {
          matrix: bytesOf(inGroups.codes),
          rowBytes: rows.length / outputs,
          codeBits: format === "code4" ? 4 : 8,
        } as const;
        placeRows(rows, groups, 0);
        for (const level of LEVELS) {
          const kernels = native[level];
          assert.ok(kernels.takesRowGroups({ format, blockSize: extents.blockSize }));
          scoped(kernels, (bind) => {
            const weight = { ...bound(bind, fresh({ ...sample.weight, codes: inGroups.codes })), inGroups: true };
            const prepared = kernels.prepareLinear(weight);
            const out = apply(kernels, sample, outputs, () => prepared);
            assert.deepEqual(bitsOf(out), bitsOf(applyPrepared(kernels, sample)), `${format} ${level} ${outputs} rows`);
            kernels.releaseLinear(prepared);
          });
        }
      }
    }
    assert.equal(createNativeKernels("f32").takesRowGroups({ format: "code4", blockSize: 32 }), false);
    assert.equal(reference.int8.takesRowGroups({ format: "code4", blockSize: 32 }), false);
  });

  it("refuses to move bytes twice, or bytes that two operands share", () => {
    scoped(native.int8, (bind) => {
      const weight = fresh(makeWeight(new Random(4), "int8", { ...extents, minimums: true }));
      const first = bound(bind, weight);
      const prepared = native.int8.prepareLinear(first);
      assert.throws(() => native.int8.prepareLinear(bound(bind, weight)), /codes to belong to no prepared weight/);
      native.int8.releaseLinear(prepared);
      const other = fresh(weight);
      const shared = bound(bind, { ...other, minimums: other.scales });
      assert.throws(() => native.int8.prepareLinear(shared), /overlap/);
    });
  });

  it("checks every extent of a call", () => {
    scoped(native.int16, (bind) => {
      const weight = fresh(makeWeight(new Random(5), "code4", extents));
      const prepared = native.int16.prepareLinear(bound(bind, weight));
      const [x, out] = [bind(zeros("f32", [2, 64])), bind(zeros("f32", [2, 5]))];
      const ids = bind(integers([2], [0, 1]));
      const narrow = bind(zeros("f32", [2, 62]));
      const scales = bind({ ...weight.scales, shape: [2, 5] });
      const { linear, embedding } = {
        linear: native.int16.linear.bind(native.int16),
        embedding: native.int16.embedding.bind(native.int16),
      };
      const wrong: readonly (readonly [RegExp, () => void])[] = [
        [/x to have 64 columns/, () => linear(out, narrow, prepared, null, 2)],
        [/out to have at least 3 rows/, () => linear(out, x, prepared, null, 3)],
        [/out to have at least 6 columns/, () => linear(out, x, prepared, null, 2, 1)],
        [/bias to have 5 elements/, () => linear(out, x, prepared, x, 2)],
        [/out not to overlap scales/, () => linear(scales, x, prepared, null, 2)],
        [/out to have 64 columns/, () => embedding(narrow, ids, prepared, 2, 0)],
        [/ids to be i32/, () => embedding(x, out, prepared, 2, 0)],
      ];
      for (const [pattern, call] of wrong) assert.throws(call, pattern);
      linear(out, x, prepared, null, 0);
      native.int16.releaseLinear(prepared);
    });
  });
});

/** A number from a normal distribution (Box and Muller). */
function normal(random: Random): number {
  const [u, v] = [(1 - random.next()) / 2, (random.next() + 1) / 2];
  return Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v);
}

describe("levels of activations", () => {
  it("round codebooks of linear codes exactly and to small numbers", () => {
    const linear = Float32Array.from({ length: 16 }, (_, i) => i - 8);
    assert.deepEqual(roundCodebook(linear, "int16"), { codes: [...linear], step: 1 });
    assert.deepEqual(roundCodebook(linear, "int8"), { codes: [...linear], step: 1 });
    const eighths = linear.map((code) => code / 8);
    assert.deepEqual(roundCodebook(eighths, "int16"), { codes: [...linear], step: 1 / 8 });
    const large = linear.map((code) => code * 2 ** 20);
    assert.deepEqual(roundCodebook(large, "int8"), { codes: [...linear], step: 2 ** 20 });
    assert.deepEqual(roundCodebook(new Float32Array(16), "int8")?.codes, [...new Float32Array(16)]);
  });

  it("round a block to 16 bits in steps that are the least power of two for the limit", () => {
    const codes = new Int32Array(3);
    assert.equal(roundActivations(Float32Array.of(8191, 1.5, -2.5), codes, 8191, "int16"), 1);
    assert.deepEqual([...codes], [8191, 2, -2]);
    assert.equal(roundActivations(Float32Array.of(-8191.5, 6, -10), codes, 8191, "int16"), 2);
    assert.deepEqual([...codes], [-4096, 3, -5]);
    assert.equal(roundActivations(Float32Array.of(2 ** -90, 0, 0), codes, 8191, "int16"), 2 ** -102);
    assert.deepEqual([...codes], [4096, 0, 0]);
    assert.equal(roundActivations(Float32Array.of(127.5, 0, 0), codes, 127, "int8"), Math.fround(127.5 / 127));
  });

  it("round other codebooks to the whole range of 16 bits, and of 8 to the scale that changes normal weights least", () => {
    // The entries of NF4 (QLoRA, appendix E), and normal numbers over the largest of 64, as a block of weights has them.
    const nf4 = Float32Array.of(
      ...[-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0],
      ...[0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1],
    );
    assert.equal(roundCodebook(nf4, "int16")?.codes.at(0), -4096);
    const rounded = roundCodebook(nf4, "int8");
    assert.ok(rounded !== null && Math.max(...rounded.codes.map(Math.abs)) <= 127);
    const random = new Random(11);
    const counts = new Float64Array(16);
    for (let block = 0; block < 500; block++) {
      const numbers = Array.from({ length: 64 }, () => normal(random));
      const largest = Math.max(...numbers.map(Math.abs));
      for (const value of numbers) {
        const nearest = nf4.reduce((best, entry, i) => {
          const isNearer = Math.abs(entry - value / largest) < Math.abs((nf4[best] ?? 0) - value / largest);
          return isNearer ? i : best;
        }, 0);
        counts[nearest] = (counts[nearest] ?? 0) + 1;
      }
    }
    const errorOf = (at: (entry: number, i: number) => number): number => {
      return nf4.reduce((sum, entry, i) => sum + (counts[i] ?? 0) * (entry - at(entry, i)) ** 2, 0);
    };
    const error = errorOf((_, i) => (rounded.codes[i] ?? 0) * rounded.step);
    for (let scale = 64; scale <= 127; scale++) {
      const plain = errorOf((entry) => Math.round(entry * scale) / scale);
      assert.ok(error <= plain * 1.01, `an error of ${error}, but ${plain} with a scale of ${scale}`);
    }
  });

  it("round a block to the nearest, ties to even", () => {
    const codes = new Int32Array(5);
    assert.equal(roundBlock(Float32Array.of(127, 0.5, 1.5, -2.5, -0.75), codes, 127), 1);
    assert.deepEqual([...codes], [127, 0, 2, -2, -1]);
  });
});
