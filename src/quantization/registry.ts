import { PluginError, UnsupportedError } from "../core/errors.js";
import type { QuantizationConfigFactory } from "./contract.js";

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

  get names(): readonly string[] {
    return [...this.#entries.keys()];
  }
}
