import { CheckpointError, describeValue, PluginError, UnsupportedError } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue } from "../core/json.js";
import type { QuantizationConfig, QuantizationConfigFactory } from "./contract.js";
import { unquantized } from "./unquantized.js";

interface Entry {
  readonly factory: QuantizationConfigFactory;
  readonly owner: string;
}

/** Quantization formats by name, as plugins registered them. One registry an engine, filled alike in every thread. */
export class QuantizationRegistry {
  readonly #entries = new Map<string, Entry>();

  /**
   * Registers a format. The same factory twice is a no-op; another one under a taken name throws PluginError
   * `DUPLICATE_REGISTRATION` naming both owners.
   */
  register(name: string, factory: QuantizationConfigFactory, owner: string): void {
    const existing = this.#entries.get(name);
    if (existing?.factory === factory) return;
    if (existing !== undefined) {
      throw new PluginError(
        "DUPLICATE_REGISTRATION",
        `quantization config "${name}": ${owner} cannot register it because ${existing.owner} already has`,
        { plugin: owner, expected: existing.owner, received: owner },
      );
    }
    this.#entries.set(name, { factory, owner });
  }

  /** The factory of a format. Throws UnsupportedError `UNKNOWN_QUANTIZATION` listing what is registered. */
  get(name: string): QuantizationConfigFactory {
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      const known = [...this.#entries.keys()].join(", ") || "none";
      throw new UnsupportedError(
        "UNKNOWN_QUANTIZATION",
        `no plugin serves quantization method "${name}" (registered: ${known}); install the package that does and name it with --plugin`,
        { expected: known, received: name },
      );
    }
    return entry.factory;
  }

  /**
   * What the `quantization_config` of a model's config.json asks for; unquantized where there is none. Throws
   * CheckpointError `INVALID_CONFIG`, UnsupportedError `UNKNOWN_QUANTIZATION`, and what the format's factory throws.
   */
  configOf(modelConfig: JsonObject): QuantizationConfig {
    const settings = modelConfig["quantization_config"] ?? null;
    if (settings === null) return unquantized;
    if (!isJsonObject(settings)) throw invalidConfig("quantization_config", "an object", settings);
    const method = settings["quant_method"];
    if (typeof method !== "string") throw invalidConfig("quantization_config.quant_method", "a string", method);
    return this.get(method)(settings);
  }

  get names(): readonly string[] {
    return [...this.#entries.keys()];
  }
}

function invalidConfig(key: string, expected: string, value: JsonValue | undefined): CheckpointError {
  const received = describeValue(value);
  return new CheckpointError(
    "INVALID_CONFIG",
    `config.json: expected ${key} to be ${expected} but received ${received}`,
    { option: key, expected, received },
  );
}
