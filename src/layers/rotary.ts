/**
 * Rotary position embedding (Su et al. 2021): tables of cosines and sines, computed in f32 in the order that
 * transformers' `modeling_rope_utils.py` does, so that angles agree with it.
 */
import type { Operand } from "../core/operand.js";
import type { ModelMemory } from "./model-memory.js";

/** How positions are stretched beyond those the model was trained on. */
export type RopeScaling =
  | { readonly type: "default" }
  /** Positions divided by `factor` (kaiokendev 2023). */
  | { readonly type: "linear"; readonly factor: number }
  /** Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated. */
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalMaxPositions: number;
    };

export interface RopeOptions {
  readonly headSize: number;
  readonly theta: number;
  readonly scaling: RopeScaling;
}

const { fround } = Math;

/** f32 `[headSize / 2]`: radians a position turns each pair by. */
export function inverseFrequencies({ headSize, theta, scaling }: RopeOptions): Float32Array {
  const half = headSize / 2;
  const frequencies = new Float32Array(half);
  for (let i = 0; i < half; i++) frequencies[i] = fround(1 / fround(theta ** fround((2 * i) / headSize)));
  if (scaling.type === "default") return frequencies;
  if (scaling.type === "linear") return frequencies.map((frequency) => frequency / scaling.factor);
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositions } = scaling;
  return frequencies.map((frequency) => {
    const wavelength = fround(fround(2 * Math.PI) / frequency);
    if (wavelength > originalMaxPositions / lowFrequencyFactor) return fround(frequency / factor);
    if (wavelength < originalMaxPositions / highFrequencyFactor) return frequency;
    const smooth = fround(
      fround(fround(originalMaxPositions / wavelength) - lowFrequencyFactor) /
        (highFrequencyFactor - lowFrequencyFactor),
    );
    const stretched = fround(fround(fround(1 - smooth) * frequency) / factor);
    return fround(stretched + fround(smooth * frequency));
  });
}

/** f32 `[positions, headSize]`: row p holds headSize / 2 cosines, then as many sines. */
export function fillCosSin(out: Float32Array, positions: number, options: RopeOptions): void {
  const frequencies = inverseFrequencies(options);
  const half = frequencies.length;
  for (let position = 0; position < positions; position++) {
    const row = position * 2 * half;
    for (let i = 0; i < half; i++) {
      const angle = fround(position * (frequencies[i] ?? 0));
      out[row + i] = Math.cos(angle);
      out[row + half + i] = Math.sin(angle);
    }
  }
}

/** The table for all positions of a model, shared by all of its layers. */
export function createCosSin(memory: ModelMemory, options: RopeOptions): Operand {
  const positions = memory.maxPositions;
  return memory.constants("rope", positions, options.headSize, (out) => fillCosSin(out, positions, options));
}
