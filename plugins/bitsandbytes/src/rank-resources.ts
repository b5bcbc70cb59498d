/** What the layers of one rank share. Layers run one after another, so one set of scratch serves all. */
import { f32Of, type LoadedWeights, type Operand } from "shardloom/plugin";
import { ActivationRows } from "./activation-rows.js";
import { CODEBOOKS, type FourBitType } from "./codebooks.js";
import { ReductionBuffers } from "./int8-reduction.js";

export class RankResources {
  /** Activations on their way through an int8 layer. */
  readonly activations = new ActivationRows();
  readonly #codebooks = new Map<FourBitType, Operand>();
  readonly #reductionBuffers = new Map<number, ReductionBuffers>();

  /** f32 `[16]`, bound. */
  codebook(type: FourBitType, { kernels, allocate }: LoadedWeights): Operand {
    const existing = this.#codebooks.get(type);
    if (existing !== undefined) return existing;
    const tensor = allocate(type, "f32", [16]);
    f32Of(tensor).set(CODEBOOKS[type]);
    const operand = kernels.bind(tensor);
    this.#codebooks.set(type, operand);
    return operand;
  }

  /** Memory in which row-parallel layers of so many outputs meet the other ranks. */
  reductionBuffers(outputs: number, worldSize: number, weights: LoadedWeights): ReductionBuffers {
    let buffers = this.#reductionBuffers.get(outputs);
    if (buffers === undefined) {
      buffers = new ReductionBuffers(outputs, worldSize, weights);
      this.#reductionBuffers.set(outputs, buffers);
    }
    return buffers;
  }
}
