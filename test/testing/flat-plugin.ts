/**
 * A made-up format for tests of the simulator: fused layers keep their weights as one column of elements, as
 * bitsandbytes keeps its codes, so that only a shard indexer knows where rows are. It can be told to do things wrong.
 */
import {
  bytesOf,
  type Checkpoint,
  type CheckpointTensor,
  dtypeBytes,
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
  type ShardIndexer,
  type WeightCreation,
} from "../../src/plugin.js";

/** What is done wrong. */
export type Fault =
  /** The source is asked for without regard to the rank. */
  | "ignores the rank"
  /** Rank 1 changes an element after loading. */
  | "changes an element"
  /** Original offsets are asked for though nobody needs them. */
  | "asks for offsets";

class FlatMethod implements LinearMethod {
  readonly #fault: Fault | null;
  #weight: LinearWeight | undefined;

  constructor(fault: Fault | null) {
    this.#fault = fault;
  }

  createWeights(creation: WeightCreation, layer: LinearLayer): void {
    creation.addParameter({
      name: "weight",
      dtype: layer.dtype,
      shape: [layer.outputSizePerPartition * layer.inputSize, 1],
      outputDim: 0,
      inputDim: null,
      shardIndexer: this.#indexer(layer),
    });
  }

  #indexer({ inputSize, parts }: LinearLayer): ShardIndexer {
    return ({ of, extent, originalOffsets, shardId }) => {
      if (this.#fault === "asks for offsets") originalOffsets();
      const part = parts.find((each) => each.shardId === shardId);
      const ignored = this.#fault === "ignores the rank" && of === "source" ? (part?.rows.start ?? 0) : 0;
      return { offset: (extent.offset - ignored) * inputSize, size: extent.size * inputSize };
    };
  }

  processWeightsAfterLoading({ kernels, tensor }: LoadedWeights, layer: LinearLayer): void {
    const flat = tensor("weight");
    if (this.#fault === "changes an element" && layer.rank === 1) bytesOf(flat)[1] = 0x7f;
    const shape = [layer.outputSizePerPartition, layer.inputSize];
    this.#weight = { format: "dense", matrix: kernels.bind({ ...flat, shape }) };
  }

  apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    if (this.#weight !== undefined) kernels.linear(out, x, this.#weight, bias, rows);
  }

  executionWeights(): readonly ExecutionWeight[] {
    return this.#weight === undefined ? [] : [{ firstRow: 0, weight: this.#weight }];
  }
}

/** The plugin. Quantization "flat" stores the layers that match `layers` flat. */
export function flatPlugin(fault: Fault | null = null, layers = /\.(qkv_proj|gate_up_proj)$/): Plugin {
  return {
    name: "flat-plugin",
    apiVersion: PLUGIN_API_VERSION,
    register(context) {
      context.registerQuantizationConfig("flat", {
        create: ({ checkpoint }) => flatConfig(checkpoint, fault, layers),
      });
    },
  };
}

function flatConfig(checkpoint: Checkpoint, fault: Fault | null, layers: RegExp): QuantizationConfig {
  const flat = new Set<string>();
  return {
    name: "flat",
    get checkpoint() {
      const tensors = [...checkpoint.tensors].map(
        ([name, tensor]) => [name, flat.has(name) ? flatten(tensor) : tensor] as const,
      );
      return { ...checkpoint, tensors: new Map(tensors) };
    },
    linearMethod(layer) {
      if (!layers.test(layer.prefix)) return null;
      for (const { prefix } of layer.parts) flat.add(`${prefix}.weight`);
      flat.add(`${layer.prefix}.weight`);
      return new FlatMethod(fault);
    },
  };
}

function flatten(tensor: CheckpointTensor): CheckpointTensor {
  const bytes = tensor.shape.reduce((product, extent) => product * extent, dtypeBytes(tensor.dtype));
  return {
    name: tensor.name,
    dtype: tensor.dtype,
    shape: [bytes / dtypeBytes(tensor.dtype), 1],
    file: tensor.file,
    read: (destination, byteOffset) => tensor.read(destination, byteOffset),
  };
}
