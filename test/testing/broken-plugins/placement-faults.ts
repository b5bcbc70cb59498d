/** Plugins that look for shards where they are not. */
import {
  type CheckpointTensor,
  type LinearLayer,
  type LinearMethod,
  rangeSize,
  type ShardIndexer,
  type WeightCreation,
} from "../../../src/plugin.js";
import { type BrokenPlugin, withConfig, withMethod } from "./broken-plugin.js";
import { fused, oddRows, separate, unknown } from "./fixtures.js";
import { BLOCK, NibblesConfig, NibblesMethod, type Shown, type Stored } from "./nibbles.js";

class WrongOffsetForV extends NibblesMethod {
  protected override indexer(layer: LinearLayer): ShardIndexer {
    const right = super.indexer(layer);
    return (query) => {
      const answer = right(query);
      return query.of === "source" && query.shardId === "v" ? { ...answer, offset: 0 } : answer;
    };
  }
}

/** Takes v from where k is, in a tensor that holds both. */
class ValuesFromKeys extends NibblesMethod {
  protected override indexer(layer: LinearLayer): ShardIndexer {
    const right = super.indexer(layer);
    return (query) => {
      const answer = right(query);
      return query.of === "source" && query.shardId === "v"
        ? { ...answer, offset: answer.offset - answer.size }
        : answer;
    };
  }
}

class IgnoringTheRank extends NibblesMethod {
  override createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const local = layer.kind === "column";
    super.createWeights({ addParameter: (spec) => creation.addParameter({ ...spec, isSharded: local }) }, layer);
  }
}

/** Its view hands every rank the rows of rank 0, as a loader does that reads an optional rank with a default. */
class ConfigIgnoringTheRank extends NibblesConfig {
  protected override createMethod(): LinearMethod {
    return new IgnoringTheRank(this);
  }

  protected override show(stored: Stored, layer: LinearLayer): Shown {
    const shown = super.show(stored, layer);
    if (layer.kind !== "column") return shown;
    const local = (tensor: CheckpointTensor): CheckpointTensor => {
      return { ...tensor, shape: [layer.outputSizePerPartition, ...tensor.shape.slice(1)] };
    };
    return { codes: local(shown.codes), scales: local(shown.scales) };
  }
}

class Flooring extends NibblesMethod {
  protected override bytesOf(rows: number, { inputSize }: LinearLayer): number {
    return Math.floor((rows * inputSize) / 2);
  }
}

/** Blocks of a shard are counted from its own first column. */
class CountingBlocksFromTheShard extends NibblesMethod {
  protected override decode(values: Float32Array, codes: Uint8Array, scales: Float32Array, layer: LinearLayer): void {
    const inputs = rangeSize(layer.inputs);
    const blocks = scales.length / layer.outputSizePerPartition;
    values.forEach((_, i) => {
      const block = Math.floor((i % inputs) / BLOCK);
      values[i] = (this.codeOf(codes, i) - 8) * (scales[Math.floor(i / inputs) * blocks + block] ?? 0);
    });
  }
}

class AskingForOffsets extends NibblesMethod {
  protected override indexer(layer: LinearLayer): ShardIndexer {
    const right = super.indexer(layer);
    return (query) => {
      query.originalOffsets();
      return right(query);
    };
  }
}

export const takingVFromItsFirstRow = withMethod(WrongOffsetForV);

export const placementFaults: readonly BrokenPlugin[] = [
  {
    what: "takes v from its first row on",
    plugin: takingVFromItsFirstRow,
    fixture: separate,
    caughtBy: "qkv layers are slices of the whole on 2 to 8 ranks",
    message:
      /2 ranks, cut evenly: model\.layers\.0\.self_attn\.v_proj\.weight, rank 1, shard v, index \[8, \d+\]: expected/,
  },
  {
    what: "takes v from where k is, fused on disk",
    plugin: withMethod(ValuesFromKeys),
    fixture: fused,
    caughtBy: "qkv layers hold the expected values",
    message: /v_proj\.weight, rank 0, shard v, index \[0, 0\]/,
  },
  {
    what: "ignores the rank",
    plugin: withConfig(ConfigIgnoringTheRank),
    fixture: unknown,
    caughtBy: "column layers are slices of the whole on 2 to 8 ranks",
    message: /q_proj\.weight, rank 1, index \[32, 0\]: expected/,
  },
  {
    what: "floors where packing is not exact",
    plugin: withMethod(Flooring),
    fixture: oddRows,
    caughtBy: "merged layers are slices of the whole on 2 to 8 ranks",
    message: /(gate|up)_proj\.weight, rank \d, shard \d, index/,
  },
  {
    what: "counts blocks from the first column of the shard",
    plugin: withMethod(CountingBlocksFromTheShard),
    fixture: separate,
    caughtBy: "row layers are slices of the whole on 2 to 8 ranks",
    message: /rank 1, index \[0, \d+\]/,
  },
  {
    what: "asks for original offsets that it does not use",
    plugin: withMethod(AskingForOffsets),
    fixture: separate,
    caughtBy: "original offsets are asked for only by a shard indexer that uses them, once a layer",
    message: /shard indexer of model\.layers\.0\.mlp\.gate_up_proj, rank 0, shard \d, asks for/,
  },
];
