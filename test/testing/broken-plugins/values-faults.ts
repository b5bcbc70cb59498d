/** Plugins whose shards hold what the weight does not. */
import {
  type Checkpoint,
  f32Of,
  type LinearLayer,
  type LinearMethod,
  type LoadedWeights,
  rangeSize,
  type WeightCreation,
} from "../../../src/plugin.js";
import { type BrokenPlugin, withConfig, withMethod } from "./broken-plugin.js";
import { inFlight, separate, unknown } from "./fixtures.js";
import { BLOCK, NibblesConfig, NibblesMethod, quantize } from "./nibbles.js";

class DroppingTheLastBlock extends NibblesMethod {
  protected override decode(values: Float32Array, codes: Uint8Array, scales: Float32Array, layer: LinearLayer): void {
    super.decode(values, codes, scales, layer);
    const inputs = rangeSize(layer.inputs);
    const whole = Math.floor(inputs / BLOCK) * BLOCK;
    for (let i = 0; i < values.length; i++) if (i % inputs >= whole) values[i] = 0;
  }
}

class TransposingNibbles extends NibblesMethod {
  protected override codeOf(codes: Uint8Array, i: number): number {
    return super.codeOf(codes, i ^ 1);
  }
}

/** Loads floats, and quantizes what it has of them. */
class QuantizingTheShard extends NibblesMethod {
  override createWeights(creation: WeightCreation, layer: LinearLayer): void {
    const shape = [layer.outputSizePerPartition, rangeSize(layer.inputs)];
    creation.addParameter({ name: "weight", dtype: "f32", shape, outputDim: 0, inputDim: 1 });
  }

  override processWeightsAfterLoading({ tensor, kernels }: LoadedWeights, layer: LinearLayer): void {
    const weight = tensor("weight");
    const { values } = quantize(f32Of(weight), layer.outputSizePerPartition, rangeSize(layer.inputs));
    f32Of(weight).set(values);
    this.weight = { format: "dense", matrix: kernels.bind(weight) };
  }
}

class ConfigQuantizingTheShard extends NibblesConfig {
  override linearMethod(layer: LinearLayer): LinearMethod | null {
    return layer.kind === "embedding" ? null : new QuantizingTheShard(this);
  }

  override get checkpoint(): Checkpoint {
    if (this.source === null) throw new RangeError("asked twice");
    return this.source;
  }
}

class Dithering extends NibblesMethod {
  protected override decode(values: Float32Array, codes: Uint8Array, scales: Float32Array, layer: LinearLayer): void {
    super.decode(values, codes, scales, layer);
    values.forEach((value, i) => {
      values[i] = value * (1 + (Math.random() - 0.5) * 2 ** -20);
    });
  }
}

/** What it computes depends on how many layers the process has loaded before. */
let layersLoaded = 0;
class CountingLayers extends NibblesMethod {
  protected override decode(values: Float32Array, codes: Uint8Array, scales: Float32Array, layer: LinearLayer): void {
    super.decode(values, codes, scales, layer);
    layersLoaded++;
    if (values[0] !== undefined) values[0] += layersLoaded / 1024;
  }
}

class LeavingRowsOut extends NibblesMethod {
  override executionWeights() {
    return super.executionWeights().map(({ weight }) => ({ firstRow: 1, weight }));
  }
}

export const valuesFaults: readonly BrokenPlugin[] = [
  {
    what: "drops the last block of a row",
    plugin: withMethod(DroppingTheLastBlock),
    fixture: separate,
    caughtBy: "replicated layers hold the expected values",
    message: /q_proj\.weight, rank 0, index \[0, 9\d\]: expected -?[\d.e-]+ but received 0/,
  },
  {
    what: "drops the last block of a shard's row, of a format nobody else knows",
    plugin: withMethod(DroppingTheLastBlock),
    fixture: unknown,
    caughtBy: "row layers are slices of the whole on 2 to 8 ranks",
    message: /rank 0, index \[0, \d+\]: expected -?[\d.e-]+ but received 0/,
  },
  {
    what: "transposes nibbles",
    plugin: withMethod(TransposingNibbles),
    fixture: separate,
    caughtBy: "replicated layers hold the expected values",
    message: /rank 0, index \[0, 0\]/,
  },
  {
    what: "quantizes its shard rather than the weight",
    plugin: withConfig(ConfigQuantizingTheShard),
    fixture: inFlight,
    caughtBy: "row layers are slices of the whole on 2 to 8 ranks",
    message: /rank \d, index \[\d+, \d+\]/,
  },
  {
    what: "rounds at random",
    plugin: withMethod(Dithering),
    fixture: separate,
    caughtBy: "loaded again it holds the same bits",
    message: /replicated layers, the values of .* on rank 0, loaded again, .*: expected the same bytes/,
  },
  {
    what: "lets values depend on what was loaded before",
    plugin: withMethod(CountingLayers),
    fixture: unknown,
    caughtBy: "loaded again it holds the same bits",
    message: /expected the same bytes but byte \d is another/,
  },
  {
    what: "leaves rows out",
    plugin: withMethod(LeavingRowsOut),
    fixture: separate,
    caughtBy: "loaded again it holds the same bits",
    message: /execution weights/,
  },
];
