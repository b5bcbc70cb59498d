/**
 * A made-up format for tests of the simulator: beside every weight of an MLP lies a scale for each block of outputs and
 * inputs. All scales are one, and boundaries between ranks may cut blocks. A rank may be told to do without scales.
 */
import {
  type Checkpoint,
  type CheckpointTensor,
  type ExecutionWeight,
  type Kernels,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type LoadedWeights,
  type Operand,
  PLUGIN_API_VERSION,
  type Plugin,
  type QuantizationConfig,
  rangeSize,
  type WeightCreation,
} from "../../src/plugin.js";

const BLOCK = { outputs: 48, inputs: 48 };

/** Blocks that a range of rows or columns touches. */
function blocks({ start, end }: { readonly start: number; readonly end: number }, size: number): number {
  return Math.ceil(end / size) - Math.floor(start / size);
}

class BlockScaleMethod implements LinearMethod {
  readonly #scaled: boolean;
  #weight: LinearWeight | undefined;

  constructor(scaled: boolean) {
    this.#scaled = scaled;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const { inputs, parts, dtype, outputSizePerPartition } = layer;
    const dims = { outputDim: 0, inputDim: 1 };
    creation.addParameter({ name: "weight", dtype, shape: [outputSizePerPartition, rangeSize(inputs)], ...dims });
    if (!this.#scaled) return;
    const rows = parts.reduce((sum, part) => sum + blocks(part.rows, BLOCK.outputs), 0);
    const shape = [rows, blocks(inputs, BLOCK.inputs)];
    creation.addParameter({ name: "weight_scale", dtype: "f32", shape, blockScale: BLOCK, ...dims });
  }

  processWeightsAfterLoading({ kernels, tensor }: LoadedWeights): void {
    this.#weight = { format: "dense", matrix: kernels.bind(tensor("weight")) };
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.#weight !== undefined) kernels.linear(out, x, this.#weight, bias, rows);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weight === undefined ? [] : [{ firstRow: 0, weight: this.#weight }];
  }
}

/** The plugin: quantization "block-scale". `unscaledRank` stores its weights without scales. */
export function blockScalePlugin(unscaledRank?: number): Plugin {
  return {
    name: "block-scale-plugin",
    apiVersion: PLUGIN_API_VERSION,
    register(context) {
      context.registerQuantizationConfig("block-scale", {
        create: ({ checkpoint }) => blockScale(checkpoint, unscaledRank),
      });
    },
  };
}

function blockScale(checkpoint: Checkpoint, unscaledRank: number | undefined): QuantizationConfig {
  let scaled = true;
  return {
    name: "block-scale",
    get checkpoint() {
      const weights = [...checkpoint.tensors.values()].filter(({ name }) => scaled && name.includes(".mlp."));
      const scales = weights.map(scaleOf).map((scale) => [scale.name, scale] as const);
      return { ...checkpoint, tensors: new Map([...checkpoint.tensors, ...scales]) };
    },
    linearMethod: ({ prefix, rank }) => {
      scaled = rank !== unscaledRank;
      return prefix.includes(".mlp.") ? new BlockScaleMethod(scaled) : null;
    },
  };
}

function scaleOf({ name, shape, file }: CheckpointTensor): CheckpointTensor {
  const [outputs = 0, inputs = 0] = shape;
  return {
    name: `${name}_scale`,
    dtype: "f32",
    shape: [Math.ceil(outputs / BLOCK.outputs), Math.ceil(inputs / BLOCK.inputs)],
    file,
    read(destination, byteOffset) {
      const one = new Uint8Array(new Float32Array([1]).buffer);
      for (let i = 0; i < destination.length; i++) destination[i] = one[(byteOffset + i) % 4] ?? 0;
    },
  };
}
