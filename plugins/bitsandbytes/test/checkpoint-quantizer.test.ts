import assert from "node:assert/strict";
import fc from "fast-check";
import {
  type CheckpointQuantizer,
  type CheckpointTensor,
  dtypeBytes,
  elementCount,
  type JsonObject,
  type QuantizedTensor,
} from "shardloom/plugin";
import { checkpointOf } from "shardloom/testing";
import { type FourBitType, plugin } from "../src/index.js";
import { TableSlot } from "../src/quantized-weight.js";
import { findStoredWeights } from "../src/stored-weights.js";
import { dequantized } from "../src/virtual-tensors.js";
import {
  bytesOfTensor,
  floatsOfTensor,
  hasCode,
  memoryTensor,
  openFixture,
  randomValues,
  storeFourBit,
  storeInt8,
} from "./fixture.js";

/** The quantizers that the plugin registers, by format. */
const quantizers = new Map<string, CheckpointQuantizer>();
plugin.register({
  registerModelLoader: () => assert.fail("it brings no loader"),
  registerQuantizationConfig: () => {},
  registerCheckpointQuantizer: (format, quantizer) => void quantizers.set(format, quantizer),
});

function planOf(format: string, options: JsonObject = {}, skipModules: readonly string[] | null = null) {
  return (quantizers.get(format) ?? assert.fail(`no ${format}`)).plan({ options, skipModules });
}

/** Reads tensors as `shardloom quantize` does: one after another, each in pieces. */
function read(tensors: readonly QuantizedTensor[], pieceBytes: number): CheckpointTensor[] {
  return tensors.map((tensor) => {
    const { name, dtype } = tensor;
    const pieces: Uint8Array[] = [];
    const shape = tensor.settledShape?.() ?? tensor.shape;
    const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
    for (let done = 0; done < sizeBytes; done += pieceBytes) {
      const piece = new Uint8Array(Math.min(pieceBytes, sizeBytes - done));
      tensor.read(piece, done);
      pieces.push(piece);
    }
    return memoryTensor(name, dtype, shape, Buffer.concat(pieces));
  });
}

function quantize(format: string, weight: CheckpointTensor, options: JsonObject = {}, pieceBytes = 4096) {
  return read(planOf(format, options).replace(weight) ?? assert.fail(`${weight.name} stays`), pieceBytes);
}

function described(tensors: Iterable<CheckpointTensor>): ReadonlyMap<string, unknown> {
  const entries = [...tensors].map((tensor) => {
    return [tensor.name, [tensor.dtype, tensor.shape, Buffer.from(bytesOfTensor(tensor)).toString("hex")]] as const;
  });
  return new Map(entries.toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

const fourBit = fc.constantFrom<FourBitType>("nf4", "fp4");
const blockSize = fc.constantFrom(32, 64, 128, 4096);
const extent = fc.integer({ min: 1, max: 90 });

describe("a checkpoint quantized", () => {
  for (const [source, golden, format, options] of [
    ["llama/bf16", "llama/nf4", "nf4", {}],
    ["llama/bf16", "llama/nf4-dq", "nf4", { doubleQuant: true }],
    ["llama/bf16", "llama/fp4", "fp4", {}],
    ["llama/bf16", "llama/int8", "int8", {}],
    ["llama-uneven/bf16", "llama-uneven/nf4", "nf4", {}],
    ["phi3/bf16", "phi3/nf4", "nf4", {}],
  ] as const) {
    it(`has in the place of a weight what bitsandbytes has: ${golden}`, () => {
      const [weights, expected] = [openFixture(source), openFixture(golden)];
      const stored = [...expected.tensors.values()];
      const { replace } = planOf(format, options);
      let quantized = 0;
      for (const weight of weights.tensors.values()) {
        const module = weight.name.replace(/\.weight$/, "");
        const belongs = stored.filter(({ name }) => name === weight.name || name.startsWith(`${module}.`));
        if (belongs.length === 1) continue;
        const made = read(replace(weight) ?? assert.fail(`${weight.name} stays`), 1000);
        assert.deepEqual(described(made), described(belongs), weight.name);
        quantized++;
      }
      assert.equal(quantized, [...stored].filter(({ name }) => /quant_state|SCB/.test(name)).length);
      weights.close();
      expected.close();
    });
  }

  it("is what is read back, with any shape, block size and pieces, odd numbers of elements among them", () => {
    fc.assert(
      fc.property(
        fourBit,
        blockSize,
        fc.boolean(),
        extent,
        extent,
        fc.integer({ min: 1, max: 900 }),
        (type, size, doubleQuant, rows, columns, pieceBytes) => {
          const options = { type, blockSize: size, doubleQuant };
          const values = randomValues(rows * columns, rows);
          const weight = memoryTensor("X.weight", "f32", [rows, columns], values);
          const made = quantize(type, weight, { blockSize: size, doubleQuant }, pieceBytes);
          const state = made.find(({ name }) => name.includes("quant_state")) ?? assert.fail("no state");
          const json = JSON.parse(new TextDecoder().decode(bytesOfTensor(state)));
          assert.deepEqual([json.dtype, json.shape, json.blocksize], ["float32", [rows, columns], size]);
          const opened = findStoredWeights(checkpointOf(made), new TableSlot()).weights.get("X.weight");
          const expected = findStoredWeights(
            checkpointOf(storeFourBit("X", [rows, columns], values, options)),
            new TableSlot(),
          ).weights.get("X.weight");
          assert.ok(opened !== undefined && expected !== undefined);
          assert.deepEqual(floatsOfTensor(dequantized(opened)), floatsOfTensor(dequantized(expected)));
        },
      ),
      { numRuns: 60 },
    );
  });

  it("is the same in int8, whatever the pieces", () => {
    fc.assert(
      fc.property(extent, extent, fc.integer({ min: 1, max: 900 }), (rows, columns, pieceBytes) => {
        const values = randomValues(rows * columns, rows);
        const made = quantize("int8", memoryTensor("X.weight", "f32", [rows, columns], values.slice()), {}, pieceBytes);
        assert.deepEqual(described(made), described(storeInt8("X", [rows, columns], values)));
      }),
      { numRuns: 60 },
    );
  });

  it("knows how large a quant state may become before it knows its offset", () => {
    for (const scale of [1, 1e-30, 3.14159e7]) {
      const values = randomValues(1000, 1).map((value) => value * scale);
      const made =
        planOf("nf4", { doubleQuant: true }).replace(memoryTensor("X.weight", "f32", [10, 100], values)) ?? [];
      const state = made.find(({ settledShape }) => settledShape !== undefined) ?? assert.fail("nothing is deferred");
      for (const tensor of made.filter((each) => each !== state)) read([tensor], 1 << 20);
      const [length = 0] = state.settledShape?.() ?? [];
      assert.ok(length > 0 && length <= (state.shape[0] ?? 0), `${length} of ${state.shape[0]}`);
    }
  });

  it("has been read once, in pieces, whatever its size", () => {
    const values = randomValues(1 << 20, 3);
    for (const [format, options] of [
      ["nf4", {}],
      ["nf4", { doubleQuant: true }],
      ["int8", {}],
    ] as const) {
      const memory = memoryTensor("X.weight", "f32", [1 << 10, 1 << 10], values);
      let bytesRead = 0;
      let largest = 0;
      const counted: CheckpointTensor = {
        ...memory,
        read(destination, byteOffset) {
          bytesRead += destination.length;
          largest = Math.max(largest, destination.length);
          memory.read(destination, byteOffset);
        },
      };
      quantize(format, counted, options, 1 << 16);
      assert.equal(bytesRead, values.byteLength, format);
      assert.ok(largest <= values.byteLength / 16, `${format}: ${largest} bytes at a time`);
    }
  });

  it("leaves the output head alone, or what the user names instead, and says so in config.json", () => {
    const weight = (module: string): CheckpointTensor =>
      memoryTensor(`${module}.weight`, "f32", [1, 2], [0, 0, 0, 0, 0, 0, 0, 0]);
    const byDefault = planOf("nf4");
    assert.equal(byDefault.replace(weight("lm_head")), null);
    assert.notEqual(byDefault.replace(weight("model.layers.0.mlp.up_proj")), null);
    assert.equal(JSON.parse(byDefault.settings).llm_int8_skip_modules, null);
    const listed = planOf("nf4", {}, ["model.layers.0.mlp.up_proj"]);
    assert.notEqual(listed.replace(weight("lm_head")), null);
    assert.equal(listed.replace(weight("model.layers.0.mlp.up_proj")), null);
    assert.notEqual(listed.replace(weight("model.layers.0.mlp.down_proj")), null);
    assert.deepEqual(JSON.parse(listed.settings).llm_int8_skip_modules, ["model.layers.0.mlp.up_proj"]);
    assert.deepEqual(JSON.parse(planOf("int8", {}, []).settings).llm_int8_skip_modules, []);
  });

  it("is not begun with options that it does not take, nor from integers", () => {
    assert.throws(() => planOf("nf4", { blockSize: 100 }), hasCode("INVALID_OPTION"));
    assert.throws(() => planOf("int8", { blockSize: 64 }), hasCode("INVALID_OPTION"));
    assert.throws(() => planOf("nf4", { outlierThreshold: 6 }), hasCode("UNKNOWN_OPTION"));
    for (const format of ["nf4", "int8"]) {
      const weight = memoryTensor("X.weight", "i8", [1, 2], [1, 2]);
      assert.throws(() => planOf(format).replace(weight), hasCode("DTYPE_MISMATCH"));
    }
    const cube = memoryTensor("X.weight", "f32", [1, 1, 2], new Float32Array(2));
    assert.throws(() => planOf("int8").replace(cube), hasCode("SHAPE_MISMATCH"));
  });
});
