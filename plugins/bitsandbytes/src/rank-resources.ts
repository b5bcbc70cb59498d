/** What the layers of one rank share. Layers run one after another, so one set of scratch serves all. */
import { f32Of, type LoadedWeights, type Operand } from "shardloom/plugin";
import { ActivationRows } from "./activation-rows.js";
import { CODEBOOKS, type FourBitType } from "./codebooks.js";
import { Reduction } from "./int8-reduction.js";

export class RankResources {
  /** Activations on their way through an int8 layer. */
  readonly activations = new ActivationRows();
  readonly #codebooks = new Map<FourBitType, Operand>();
  readonly #reductions = new Map<number, Reduction>();

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

  /** Buffers and requests by which row-parallel layers of so many outputs meet the other ranks. */
  reduction(outputs: number, worldSize: number, weights: LoadedWeights): Reduction {
    let reduction = this.#reductions.get(outputs);
    if (reduction === undefined) {
      reduction = new Reduction(outputs, worldSize, weights);
      this.#reductions.set(outputs, reduction);
    }
    return reduction;
  }
}
