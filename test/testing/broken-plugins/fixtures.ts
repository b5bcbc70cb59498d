/** Models in the nibbles format, for the honest plugin and for the broken ones. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import type { JsonObject } from "../../../src/plugin.js";
import {
  type MatrixToStore,
  memoryTensor,
  modelInFormat,
  type PluginFixture,
  type StoredMatrix,
} from "../../../src/testing/index.js";
import { writeNibFile } from "./nib-file.js";
import { BLOCK, blocksOf, METHOD, quantize } from "./nibbles.js";

const settings: JsonObject = { quant_method: METHOD, block_size: BLOCK };

function store({ module, shape, values }: MatrixToStore): StoredMatrix {
  const [outputs, inputs] = shape;
  const stored = quantize(values, outputs, inputs);
  return {
    tensors: [
      memoryTensor(`${module}.weight`, "u8", [(outputs * inputs) / 2], stored.codes),
      memoryTensor(`${module}.scales`, "f32", [outputs, blocksOf(inputs)], stored.scales),
    ],
    values: stored.values,
  };
}

const finite = (tensor: string): boolean => tensor.endsWith(".scales");

/** Every matrix on its own, embedding and head among them. Rows end in blocks of 4, 8 and 16. */
export const separate: PluginFixture = {
  name: "separate",
  ...modelInFormat({ settings, store, config: { hidden_size: 100, intermediate_size: 168 } }),
  cutsAt: { inputs: 2 },
  finite,
};

/** The same, with nothing known of its values: as for a format without another implementation. */
export const unknown: PluginFixture = { ...separate, name: "unknown", expected: undefined };

/** Queries, keys and values in one tensor, gate and up in another; embedding and head are plain. */
export const fused: PluginFixture = {
  name: "fused",
  ...modelInFormat({ settings, fused: true, store: (matrix) => (matrix.role === "linear" ? store(matrix) : null) }),
  cutsAt: { inputs: 2 },
  skip: ["embedding"],
  finite,
};

/** Rows of 99 codes, every other one of which begins inside a byte. Only fused layers take them. */
export const oddRows: PluginFixture = {
  name: "odd rows",
  ...modelInFormat({
    settings,
    store: (matrix) => (/(q|k|v|gate|up)_proj$/.test(matrix.module) ? store(matrix) : null),
    config: { hidden_size: 99 },
  }),
  cutsAt: { outputs: 2 },
  skip: ["replicated", "column", "row", "embedding"],
};

/** Floats that are quantized while they are loaded. */
export const inFlight: PluginFixture = {
  name: "in flight",
  ...modelInFormat({}),
  quantization: METHOD,
  cutsAt: { inputs: 2 },
};

/** The model of `separate` as a file. */
export function writtenFixture(folder: string): PluginFixture {
  const path = join(folder, "model.nib");
  const { model } = separate;
  if (typeof model === "string") throw new TypeError("the model is in memory");
  rmSync(path, { force: true });
  writeNibFile(path, model.config, model.tensors());
  return { ...separate, name: "file", model: path };
}
