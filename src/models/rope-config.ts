import type { RopeScaling } from "../layers/rotary.js";
import type { ConfigReader } from "./config-reader.js";

/**
 * Rotary settings of config.json, as transformers 5 writes them (`rope_parameters`) or 4 does (`rope_theta`,
 * `rope_scaling`). Complains with UnsupportedError `UNSUPPORTED_ROPE` of a kind of scaling this version does not know.
 */
export function parseRope(config: ConfigReader): { readonly theta: number; readonly scaling: RopeScaling } {
  const settings = config.object("rope_parameters") ?? config.object("rope_scaling");
  const theta = settings?.has("rope_theta") ? settings.positive("rope_theta") : config.positive("rope_theta", 10_000);
  return { theta, scaling: settings === null ? { type: "default" } : parseScaling(settings, config) };
}

function parseScaling(settings: ConfigReader, config: ConfigReader): RopeScaling {
  const type = settings.string(settings.has("rope_type") ? "rope_type" : "type", "default");
  switch (type) {
    case "default":
      return { type };
    case "linear":
      return { type, factor: settings.positive("factor") };
    case "llama3":
      return {
        type,
        factor: settings.positive("factor"),
        lowFrequencyFactor: settings.positive("low_freq_factor"),
        highFrequencyFactor: settings.positive("high_freq_factor"),
        originalMaxPositions: settings.has("original_max_position_embeddings")
          ? settings.size("original_max_position_embeddings")
          : config.size("max_position_embeddings"),
      };
    default:
      config.refuseRope(["default", "linear", "llama3"], type);
      return { type: "default" };
  }
}
