import { UnsupportedError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { ConfigReader } from "./config-reader.js";
import { llama } from "./llama.js";
import { mistral } from "./mistral.js";
import type { ModelFamily } from "./model.js";
import { phi3 } from "./phi3.js";
import { qwen2 } from "./qwen2.js";
import { qwen3 } from "./qwen3.js";

const families: readonly ModelFamily[] = [llama, mistral, qwen2, qwen3, phi3];

/** Architectures this version can run. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = families.flatMap((family) => family.architectures);

/**
 * The family that config.json names in `architectures`. Throws UnsupportedError `UNSUPPORTED_ARCHITECTURE` naming it and
 * what is supported.
 */
export function selectFamily(json: JsonObject): ModelFamily {
  const config = new ConfigReader(json);
  const value = config.get("architectures");
  const names = Array.isArray(value) ? value : [];
  const [name] = names;
  if (typeof name !== "string") throw config.invalid("architectures", 'a list such as ["LlamaForCausalLM"]', value);
  const family = families.find((candidate) => candidate.architectures.includes(name));
  if (family !== undefined) return family;
  const supported = SUPPORTED_ARCHITECTURES.join(", ");
  throw new UnsupportedError(
    "UNSUPPORTED_ARCHITECTURE",
    `config.json: expected an architecture among ${supported} but received ${JSON.stringify(name)}`,
    { file: "config.json", option: "architectures", expected: supported, received: name },
  );
}
