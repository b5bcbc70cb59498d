/** Rope scaling, as `rope_scaling` of config.json says it. */
import { type JsonObject, UnsupportedError } from "shardloom/plugin";
import type { Metadata } from "./metadata.js";

/** What Llama 3.1 to 3.3 were published with; the converter's own defaults. Only `factor` differs between them. */
const LOW_FREQUENCY_FACTOR = 1;
const HIGH_FREQUENCY_FACTOR = 4;
const ORIGINAL_CONTEXT = 8192;

/** Relative difference that rounding in binary32 explains. */
const TOLERANCE = 1e-4;

/**
 * Null where positions are not scaled. `frequencies` are the divisors of `rope_freqs.weight`: the converter writes them
 * instead of the four numbers of llama3 scaling, so they are taken back to those numbers and must be what these give.
 *
 * Throws UnsupportedError `UNSUPPORTED_ROPE`, CheckpointError `INVALID_METADATA`.
 */
export function ropeScaling(
  metadata: Metadata,
  theta: number,
  headSize: number,
  frequencies: Float32Array | null,
): JsonObject | null {
  const linearFactor =
    metadata.optionalNumber("llama.rope.scale_linear") ?? metadata.optionalNumber("llama.rope.scaling.factor");
  const type =
    metadata.optionalString("llama.rope.scaling.type") ?? (metadata.has("llama.rope.scale_linear") ? "linear" : "none");
  if (type !== "none" && type !== "linear") throw unsupported(metadata, "none, linear or llama3", type);
  const linear = type === "linear" && linearFactor !== null && linearFactor !== 1;
  if (linear && !(linearFactor > 0))
    throw metadata.invalid("llama.rope.scaling.factor", "positive", String(linearFactor));
  if (frequencies === null || frequencies.every((divisor) => divisor === 1)) {
    return linear ? { rope_type: "linear", factor: linearFactor } : null;
  }
  if (linear) throw unsupported(metadata, "either linear scaling or rope_freqs.weight", "both");
  return llama3Scaling(metadata, theta, headSize, frequencies);
}

function llama3Scaling(metadata: Metadata, theta: number, headSize: number, frequencies: Float32Array): JsonObject {
  // The lowest frequencies are divided by the factor itself.
  const factor = frequencies.at(-1) ?? Number.NaN;
  const same =
    frequencies.length === headSize / 2 &&
    frequencies.every((divisor, i) => {
      const expected = llama3Divisor(theta ** ((-2 * i) / headSize), factor);
      return Math.abs(divisor / expected - 1) <= TOLERANCE;
    });
  if (!same)
    throw unsupported(metadata, "a rope_freqs.weight that llama3 scaling with its usual numbers gives", "another");
  return {
    rope_type: "llama3",
    factor,
    low_freq_factor: LOW_FREQUENCY_FACTOR,
    high_freq_factor: HIGH_FREQUENCY_FACTOR,
    original_max_position_embeddings: ORIGINAL_CONTEXT,
  };
}

/** `_compute_llama3_parameters` of transformers, as a divisor of the frequency. */
function llama3Divisor(frequency: number, factor: number): number {
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < ORIGINAL_CONTEXT / HIGH_FREQUENCY_FACTOR) return 1;
  if (wavelength > ORIGINAL_CONTEXT / LOW_FREQUENCY_FACTOR) return factor;
  const smooth =
    (ORIGINAL_CONTEXT / wavelength - LOW_FREQUENCY_FACTOR) / (HIGH_FREQUENCY_FACTOR - LOW_FREQUENCY_FACTOR);
  return 1 / ((1 - smooth) / factor + smooth);
}

function unsupported(metadata: Metadata, expected: string, received: string): UnsupportedError {
  return new UnsupportedError(
    "UNSUPPORTED_ROPE",
    `${metadata.file}: expected rope scaling to be ${expected} but received ${received}`,
    { file: metadata.file, field: "rope_scaling", expected, received },
  );
}
