/** `headType`: an output head in int8 rows, tied to the embedding or not, whatever the type of the other layers. */
import assert from "node:assert/strict";
import {
  type Checkpoint,
  type CheckpointTensor,
  f32Of,
  i32Of,
  type JsonObject,
  type QuantizationConfig,
} from "shardloom/plugin";
import {
  ArenaAllocator,
  ColumnParallelLinear,
  checkpointOf,
  createReferenceKernels,
  driveInTurns,
  type LayerContext,
  loadLayers,
  VocabParallelEmbedding,
} from "shardloom/testing";
import { Int8ActivationMethod } from "../src/int8-activation-method.js";
import { QuantizedLinearMethod } from "../src/linear-method.js";
import { parseCheckpointOptions } from "../src/options.js";
import { hasCode, inFlightConfig, memoryTensor, storedConfig, storeFourBit, storeInt8 } from "./fixture.js";
import {
  type Build,
  column,
  embedding,
  expectShards,
  formatsOf,
  loadRanks,
  type Split,
  splitAt,
} from "./layer-fixture.js";

const VOCABULARY = 37;
const HIDDEN = 48;

/** Multiples of 1/512 below 2, which f16 holds as they are; a row of zeros, and rows of very different magnitude. */
const VALUES = Float32Array.from({ length: VOCABULARY * HIDDEN }, (_, i) => {
  const row = Math.floor(i / HIDDEN);
  if (row === 5) return 0;
  const sample = (Math.imul(i + 1, 2654435761) >>> 0) % 2001;
  return Math.trunc((sample - 1000) / 2 ** (row % 7)) / 512;
});

const floats = (name: string): CheckpointTensor => memoryTensor(`${name}.weight`, "f32", [VOCABULARY, HIDDEN], VALUES);

/** Values by the definition of absmax rows, an element at a time; shares no code with the plugin. */
function codedValues(values: Float32Array, columns: number): Float32Array {
  const { fround } = Math;
  return values.map((value, i) => {
    const first = i - (i % columns);
    const largest = values.subarray(first, first + columns).reduce((most, each) => Math.max(most, Math.abs(each)), 0);
    if (value === 0) return 0;
    const scaled = fround(value * fround(fround(1 / largest) * 127));
    const below = Math.floor(scaled);
    const isUp = scaled - below > 0.5 || (scaled - below === 0.5 && below % 2 !== 0);
    const code = (isUp ? below + 1 : below) || 0;
    return fround(fround(code * largest) * fround(1 / 127));
  });
}

const CODED = codedValues(VALUES, HIDDEN);

const untied =
  (split: Split): Build =>
  (context) => {
    const options = { prefix: "lm_head", inputSize: HIDDEN, outputSize: VOCABULARY, split, isHead: true };
    return new ColumnParallelLinear(context, options);
  };

const tied =
  (vocabulary: Split) =>
  (context: LayerContext): VocabParallelEmbedding => {
    const options = { prefix: "embed", vocabularySize: VOCABULARY, hiddenSize: HIDDEN, vocabulary, isHead: true };
    return new VocabParallelEmbedding(context, options);
  };

const SPLITS: readonly Split[] = [splitAt(VOCABULARY), splitAt(VOCABULARY, 20), splitAt(VOCABULARY, 11, 30)];

const quantizing = (options: JsonObject) => (checkpoint: Checkpoint) => inFlightConfig(checkpoint, options);

describe("headType", () => {
  for (const [name, build] of [
    ["lm_head", untied],
    ["embed", tied],
  ] as const) {
    for (const type of ["nf4", "int8"]) {
      it(`${name}, other layers in ${type}: rows are coded by their absmax, and every rank has its slice of the same`, () => {
        for (const split of SPLITS) {
          const config = quantizing({ type, headType: "int8" });
          const ranks = loadRanks(split.length, checkpointOf([floats(name)]), config, build(split));
          assert.deepEqual(
            ranks.map((linears) => linears.flatMap(formatsOf)),
            new Array(split.length).fill(["int8"]),
          );
          expectShards(ranks, () => CODED);
        }
      });
    }
  }

  it("a tied embedding looks up the rows that its head multiplies with, and logits are the same at any world size", () => {
    const [alone, ...others] = SPLITS.map((split) => lookUpAndMultiply(split, [36, 0, 5, 12]));
    assert.ok(alone !== undefined);
    const rows = [36, 0, 5, 12].flatMap((id) => [...CODED.subarray(id * HIDDEN, (id + 1) * HIDDEN)]);
    for (const found of alone.found) assert.deepEqual([...found], rows);
    for (const { found, logits } of others) {
      for (const each of found) assert.deepEqual([...each], rows);
      assert.deepEqual(logits, alone.logits);
    }
    assert.ok(alone.logits.some((logit) => logit !== 0));
  });

  it("an embedding that is no head is left as it is beside a head, and a head without the option", () => {
    const tensors = [floats("embed"), floats("lm_head")];
    const [split = []] = SPLITS;
    const builds = [embedding("embed", VOCABULARY, HIDDEN, split), untied(split)];
    const formats = (options: JsonObject) =>
      loadRanks(1, checkpointOf(tensors), quantizing(options), ...builds).map((linears) => linears.flatMap(formatsOf));
    assert.deepEqual(formats({ headType: "int8" }), [["dense f32", "int8"]]);
    assert.deepEqual(formats({}), [["dense f32", "dense f32"]]);
    assert.deepEqual(formats({ headType: "int8", skipModules: ["down_proj"] }), [["dense f32", "int8"]]);
  });

  it("activations meet it as they are, also where they are quantized for other int8 layers", () => {
    const [split = []] = SPLITS;
    const options = { type: "int8", int8Activations: true, headType: "int8" };
    const other = memoryTensor("a.weight", "f32", [VOCABULARY, HIDDEN], VALUES);
    const tensors = checkpointOf([floats("lm_head"), other]);
    const [linears = []] = loadRanks(
      1,
      tensors,
      quantizing(options),
      untied(split),
      column("a", VOCABULARY, HIDDEN, split),
    );
    assert.deepEqual(
      linears.map(({ method }) => method.constructor),
      [QuantizedLinearMethod, Int8ActivationMethod],
    );
  });

  it("another type, or one for a head that skipModules names too, or for a model without a head, is refused", () => {
    const [split = []] = SPLITS;
    const refused = (error: unknown): boolean =>
      hasCode("INVALID_OPTION")(error) && Object(error).details.option === "headType";
    for (const headType of ["nf4", "q8_0", true, 8]) {
      assert.throws(() => inFlightConfig(checkpointOf([]), { headType }), refused);
    }
    const load = (options: JsonObject, ...builds: readonly Build[]) => {
      const tensors = [floats("lm_head"), floats("embed"), floats("a")];
      return () => loadRanks(1, checkpointOf(tensors), quantizing({ headType: "int8", ...options }), ...builds);
    };
    assert.throws(load({ skipModules: ["lm_head"] }, untied(split)), refused);
    assert.throws(load({ skipModules: ["lm_head"] }, tied(split)), refused, "whatever its name on disk");
    assert.throws(load({ skipModules: ["embed"] }, tied(split)), refused);
    assert.throws(load({}, column("a", VOCABULARY, HIDDEN, split)), refused);
    assert.throws(() => parseCheckpointOptions("nf4", { headType: "int8" }), hasCode("UNKNOWN_OPTION"));
  });

  it("a head that is quantized on disk is taken as it is, and a checkpoint that is quantized is asked nothing of it", () => {
    const [split = []] = SPLITS;
    const shape = [VOCABULARY, HIDDEN] as const;
    const fourBit = storeFourBit("embed", shape, VALUES);
    const int8 = storeInt8("lm_head", shape, VALUES);
    const formats = (config: (checkpoint: Checkpoint) => QuantizationConfig) =>
      loadRanks(1, checkpointOf([...fourBit, ...int8]), config, tied(split), untied(split)).map((linears) =>
        linears.flatMap(formatsOf),
      );
    assert.deepEqual(formats(storedConfig), formats(quantizing({ headType: "int8" })));
    assert.deepEqual(formats(storedConfig), [["code4/16", "int8"]]);
    assert.throws(() => storedConfig(checkpointOf(int8), { headType: "int8" }), hasCode("UNKNOWN_OPTION"));
  });
});

/** Embeddings of ids on every rank, and all ranks' logits of them side by side. */
function lookUpAndMultiply(split: Split, tokens: readonly number[]) {
  const kernels = createReferenceKernels();
  const memory = new ArenaAllocator("activations", 1024 * 1024);
  const operand = (columns: number) => kernels.bind(memory.allocate("x", "f32", [tokens.length, columns]));
  const ids = memory.allocate("ids", "i32", [tokens.length]);
  i32Of(ids).set(tokens);
  const layers = split.map((_, rank) => {
    const checkpoint = checkpointOf([floats("embed")]);
    const quantization = inFlightConfig(checkpoint, { headType: "int8" });
    return loadLayers({ rank, worldSize: split.length, checkpoint, quantization, kernels }, tied(split)).layers;
  });
  const outs = layers.map(() => operand(HIDDEN));
  driveInTurns(
    layers.map((layer, rank) => layer.forward(outs[rank] ?? assert.fail(), kernels.bind(ids), tokens.length)),
  );
  const perRank = layers.map((layer, rank) => {
    const logits = operand(layer.outputSizePerPartition);
    layer.computeLogits(logits, outs[rank] ?? assert.fail(), tokens.length);
    return { values: f32Of(logits.tensor), columns: layer.outputSizePerPartition };
  });
  const logits = tokens.flatMap((_, m) =>
    perRank.flatMap(({ values, columns }) => [...values.subarray(m * columns, (m + 1) * columns)]),
  );
  return { found: outs.map(({ tensor }) => f32Of(tensor)), logits };
}
