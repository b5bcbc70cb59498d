/** Quantizing while loading: what layers read is what bitsandbytes would have stored for the whole tensor. */
import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import type { Checkpoint, CheckpointTensor } from "shardloom/plugin";
import { checkpointOf } from "shardloom/testing";
import { InFlightEightBit, InFlightFourBit } from "../src/in-flight.js";
import { TableSlot } from "../src/quantized-weight.js";
import {
  bytesOfTensor,
  floatsOfTensor,
  hasCode,
  inFlightConfig,
  memoryTensor,
  openFixture,
  randomValues,
  storeFourBit,
  storeInt8,
  tensorOf,
  viewOf,
} from "./fixture.js";
import { column, embedding, formatsOf, loadRanks, replicated, row, splitAt } from "./layer-fixture.js";

const NAME = "model.layers.1.mlp.gate_proj";

function scalesOf(weight: InFlightFourBit | InFlightEightBit, count: number): Float32Array {
  const scales = new Float32Array(count);
  weight.readScales(scales, 0);
  return scales;
}

describe("quantizing while loading", () => {
  for (const [variant, options] of [
    ["nf4", { type: "nf4", doubleQuant: false }],
    ["nf4-dq", { type: "nf4", doubleQuant: true }],
    ["fp4", { type: "fp4", doubleQuant: false }],
  ] as const) {
    it(`llama: codes and scales read in any order and any pieces are those of ${variant}, which bitsandbytes wrote`, () => {
      const stored = openFixture(`llama/${variant}`);
      const source = tensorOf(openFixture("llama/bf16"), `${NAME}.weight`);
      const expected = bytesOfTensor(tensorOf(stored, `${NAME}.weight`));
      const values = floatsOfTensor(tensorOf(viewOf(stored.tensors.values()), `${NAME}.weight`));
      const weight = new InFlightFourBit(source, { ...options, blockSize: 64 }, new TableSlot());
      const whole = scalesOf(weight, 512);
      fc.assert(
        fc.property(fc.nat(expected.length), fc.nat(expected.length), fc.nat(512), fc.nat(512), (a, b, c, d) => {
          const [start, end] = [Math.min(a, b), Math.max(a, b)];
          const [first, last] = [Math.min(c, d), Math.max(c, d)];
          const fresh = new InFlightFourBit(source, { ...options, blockSize: 64 }, new TableSlot());
          const codes = new Uint8Array(end - start);
          fresh.readCodes(codes, start);
          assert.equal(Buffer.compare(codes, expected.subarray(start, end)), 0);
          const scales = new Float32Array(last - first);
          fresh.readScales(scales, first);
          assert.deepEqual(scales, whole.subarray(first, last));
        }),
        { numRuns: 60 },
      );
      // The largest element of a block that is not nested is its scale; nested ones follow from the values.
      values.forEach((value, i) => {
        const code = (expected[i >> 1] ?? 0) >> (i % 2 === 0 ? 4 : 0);
        if (options.type === "nf4" && (code & 15) === 15) assert.equal(value, whole[Math.floor(i / 64)]);
      });
    });
  }

  it("llama: codes and row scales are those of int8", () => {
    const stored = openFixture("llama/int8");
    const source = tensorOf(openFixture("llama/bf16"), `${NAME}.weight`);
    const expected = bytesOfTensor(tensorOf(stored, `${NAME}.weight`));
    const scales = new Float32Array(bytesOfTensor(tensorOf(stored, `${NAME}.SCB`)).buffer);
    fc.assert(
      fc.property(
        fc.nat(expected.length),
        fc.nat(expected.length),
        fc.nat(256),
        fc.boolean(),
        (a, b, c, codesFirst) => {
          const [start, end] = [Math.min(a, b), Math.max(a, b)];
          const weight = new InFlightEightBit(source, new TableSlot());
          const codes = new Uint8Array(end - start);
          if (codesFirst) weight.readCodes(codes, start);
          const received = new Float32Array(256 - c);
          weight.readScales(received, c);
          if (!codesFirst) weight.readCodes(codes, start);
          assert.equal(Buffer.compare(codes, expected.subarray(start, end)), 0);
          assert.deepEqual(received, scales.subarray(c));
        },
      ),
      { numRuns: 60 },
    );
  });

  for (const dtype of ["f32", "f16", "bf16"] as const) {
    it(`quantizes ${dtype} from the values as they are stored`, () => {
      const values = randomValues(40 * 96, 9).map((value) => Math.round(value * 512) / 512);
      const bytes = dtype === "f32" ? values : patterns(values, dtype);
      const source = memoryTensor("X.weight", dtype, [40, 96], bytes);
      const weight = new InFlightFourBit(source, { type: "nf4", blockSize: 64, doubleQuant: false }, new TableSlot());
      const codes = new Uint8Array(1920);
      weight.readCodes(codes, 0);
      const exact = dtype === "bf16" ? values.map((value) => Math.fround(bf16(value))) : values;
      assert.deepEqual(codes, bytesOfTensor(storeFourBit("X", [40, 96], exact)[0] ?? assert.fail()));
    });
  }

  it("reads each block once for codes, and does not read it again for its scale", () => {
    const values = randomValues(64 * 1024, 3);
    let bytes = 0;
    const source = memoryTensor("X.weight", "f32", [64, 1024], values);
    const counting: CheckpointTensor = {
      ...source,
      read(destination, offset) {
        bytes += destination.length;
        source.read(destination, offset);
      },
    };
    const weight = new InFlightFourBit(counting, { type: "nf4", blockSize: 64, doubleQuant: false }, new TableSlot());
    weight.readCodes(new Uint8Array(1000), 512);
    assert.equal(bytes, Math.ceil((2 * 1512) / 64) * 256 - 1024 * 4);
    const before = bytes;
    weight.readScales(new Float32Array(20), 20);
    assert.equal(bytes, before);
  });

  it("keeps the table of one tensor only", () => {
    const slot = new TableSlot();
    const dropped: string[] = [];
    const holder = (name: string) => ({ release: () => void dropped.push(name) });
    const [a, b] = [holder("a"), holder("b")];
    slot.enter(a);
    slot.enter(a);
    slot.enter(b);
    assert.deepEqual(dropped, ["a"]);
  });

  it("a hundred weights that were read hold the buffers of one", async () => {
    setFlagsFromString("--expose-gc");
    const collect: unknown = runInNewContext("gc");
    assert.ok(typeof collect === "function");
    const source = memoryTensor("X.weight", "f32", [256, 256], randomValues(65_536, 5));
    const slot = new TableSlot();
    const options = { type: "nf4", blockSize: 64, doubleQuant: true } as const;
    const readOnce = (weight: InFlightFourBit | InFlightEightBit): void => {
      weight.readCodes(new Uint8Array(32_768), 0);
      weight.readScales(new Float32Array(256), 0);
    };
    const weights = Array.from({ length: 100 }, (_, i) => {
      return i % 2 === 0 ? new InFlightFourBit(source, options, slot) : new InFlightEightBit(source, slot);
    });
    const held = async (most: number): Promise<number> => {
      // Memory that is free is counted until it has been swept, which happens beside.
      for (let i = 0; i < 50 && process.memoryUsage().arrayBuffers > most; i++) {
        collect();
        await setTimeout(0);
      }
      return process.memoryUsage().arrayBuffers;
    };
    const before = await held(0);
    for (const weight of weights) readOnce(weight);
    const grown = (await held(before + 1024 * 1024)) - before;
    assert.ok(grown < 1024 * 1024, `${grown} bytes`);
  });

  it("a table that was dropped is computed anew, the same", () => {
    const values = randomValues(300 * 64, 4);
    const slot = new TableSlot();
    const make = (name: string) => {
      const source = memoryTensor(name, "f32", [300, 64], values);
      return new InFlightFourBit(source, { type: "nf4", blockSize: 64, doubleQuant: true }, slot);
    };
    const [a, b] = [make("a"), make("b")];
    const first = scalesOf(a, 300);
    assert.deepEqual(scalesOf(b, 300), first);
    assert.deepEqual(scalesOf(a, 300), first);
  });
});

describe("what is quantized while loading", () => {
  const split = splitAt(32, 16);
  const floats = (name: string) => memoryTensor(`${name}.weight`, "f32", [32, 64], randomValues(2048, name.length));
  const formats = (source: Checkpoint, options: object, name: string) => {
    return loadRanks(
      2,
      source,
      (checkpoint) => inFlightConfig(checkpoint, options),
      column(name, 32, 64, split),
    )[0]?.flatMap(formatsOf);
  };

  it("linear layers, to nf4 in blocks of 64 unless told otherwise", () => {
    const source = checkpointOf([floats("layers.0.up_proj")]);
    assert.deepEqual(formats(source, {}, "layers.0.up_proj"), ["code4/64"]);
    assert.deepEqual(formats(source, { type: "fp4", blockSize: 32 }, "layers.0.up_proj"), ["code4/32"]);
    assert.deepEqual(formats(source, { type: "int8" }, "layers.0.up_proj"), ["int8"]);
  });

  it("the output head is not, nor what a list names, which replaces the head", () => {
    const source = checkpointOf([floats("lm_head"), floats("layers.0.up_proj"), floats("layers.1.up_proj")]);
    assert.deepEqual(formats(source, {}, "lm_head"), ["dense f32"]);
    const options = { skipModules: ["layers.0"] };
    assert.deepEqual(formats(source, options, "lm_head"), ["code4/64"]);
    assert.deepEqual(formats(source, options, "layers.0.up_proj"), ["dense f32"]);
    assert.deepEqual(formats(source, options, "layers.1.up_proj"), ["code4/64"]);
  });

  it("embeddings are not", () => {
    const ranks = loadRanks(
      2,
      checkpointOf([floats("embed")]),
      (checkpoint) => inFlightConfig(checkpoint),
      embedding("embed", 32, 64, split),
    );
    assert.deepEqual(ranks[0]?.flatMap(formatsOf), ["dense f32"]);
  });

  it("names on disk decide, also in fused layers", () => {
    const source = checkpointOf([floats("a.up_proj")]);
    assert.deepEqual(formats(source, { skipModules: ["up_proj"] }, "a.up_proj"), ["dense f32"]);
    assert.deepEqual(formats(source, { skipModules: ["proj"] }, "a.up_proj"), ["code4/64"]);
  });

  it("what is quantized on disk already is taken as it is", () => {
    const stored = storeInt8("a", [32, 64], randomValues(2048, 1));
    assert.deepEqual(formats(checkpointOf(stored), { type: "nf4" }, "a"), ["int8"]);
  });

  it("a weight with a value that is no number is refused, naming tensor, file and element", () => {
    const values = randomValues(2048, 1);
    values[77] = Number.NaN;
    const source = checkpointOf([memoryTensor("a.weight", "f32", [32, 64], values)]);
    for (const type of ["nf4", "fp4", "int8"]) {
      assert.throws(() => formats(source, { type }, "a"), hasCode("NON_FINITE_WEIGHT", "a.weight"));
    }
  });

  it("a bf16 weight beyond f16 is refused by int8, which goes through f16", () => {
    const values = new Float32Array(2048).fill(1e5);
    const source = checkpointOf([memoryTensor("a.weight", "f32", [32, 64], values)]);
    assert.throws(() => formats(source, { type: "int8" }, "a"), hasCode("FLOAT_OVERFLOW", "a.weight"));
    assert.deepEqual(formats(source, { type: "nf4" }, "a"), ["code4/64"]);
  });

  it("a rank reads the blocks it needs, and no more; double quantization needs all", () => {
    const values = randomValues(64 * 256, 2);
    const bytesRead = (options: object): number => {
      let bytes = 0;
      const tensor = memoryTensor("a.weight", "f32", [64, 256], values);
      const counting = {
        ...tensor,
        read: (destination: Uint8Array, offset: number) => {
          bytes += destination.length;
          tensor.read(destination, offset);
        },
      };
      const source = checkpointOf([counting]);
      loadRanks(
        4,
        source,
        (checkpoint) => inFlightConfig(checkpoint, options),
        row("a", 64, 256, splitAt(256, 64, 128, 192)),
      );
      return bytes / 4;
    };
    assert.equal(bytesRead({}), 64 * 64 * 4);
    // The blocks at the start that codes have been made of need not be read again.
    const all = bytesRead({ doubleQuant: true }) - 64 * 64 * 4;
    assert.ok(all <= 64 * 256 * 4 && all > 63 * 256 * 4, `${all}`);
  });

  it("a replicated layer is quantized whole on every rank", () => {
    const ranks = loadRanks(
      2,
      checkpointOf([floats("gate")]),
      (checkpoint) => inFlightConfig(checkpoint),
      replicated("gate", 32, 64),
    );
    assert.deepEqual(
      ranks.map((linears) => linears.flatMap(formatsOf)),
      [["code4/64"], ["code4/64"]],
    );
  });
});

function bf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0;
  const rounded = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(Uint32Array.of(rounded).buffer)[0] ?? 0;
}

/** Bit patterns of multiples of 1/512 below 1, which f16 holds exactly, or of what bf16 makes of them. */
function patterns(values: Float32Array, dtype: "f16" | "bf16"): Uint16Array {
  if (dtype === "bf16")
    return Uint16Array.from(values, (value) => (new Uint32Array(Float32Array.of(bf16(value)).buffer)[0] ?? 0) >>> 16);
  return Uint16Array.from(values, (value) => {
    if (value === 0) return 0;
    const exponent = Math.floor(Math.log2(Math.abs(value)));
    const fraction = (Math.abs(value) / 2 ** exponent - 1) * 1024;
    return (value < 0 ? 0x8000 : 0) | ((exponent + 15) << 10) | fraction;
  });
}
