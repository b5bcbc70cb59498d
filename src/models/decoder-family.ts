import type { JsonObject } from "../core/json.js";
import type { ConfigComplaint, ConfigReader } from "./config-reader.js";
import { createDecoder, type DecoderConfig } from "./decoder.js";
import { ignoresByRule, parseDecoderConfig, repeatedBy } from "./decoder-config.js";
import type { ModelFamily } from "./model.js";

/** A family that the decoder serves: its name in `architectures`, and what its config.json says beyond the common. */
export function decoderFamily(
  architecture: string,
  settings: (config: ConfigReader) => Partial<DecoderConfig>,
): ModelFamily {
  const parse = (json: JsonObject, complain?: ConfigComplaint): DecoderConfig => {
    return parseDecoderConfig(json, (config) => ({ architecture, ...settings(config) }), complain);
  };
  return {
    architectures: [architecture],
    parseConfig: parse,
    create: (json, context, memory) => createDecoder(parse(json), context, memory),
    ignores: (name, json) => ignoresByRule(name, parse(json)),
    repeats: (name, json) => repeatedBy(name, parse(json)),
  };
}
