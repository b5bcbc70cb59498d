import type { ReadGroup } from "../checkpoint/shared-reads.js";
import {
  CheckpointError,
  describeValue,
  OptionError,
  PluginError,
  reasonOf,
  ShardloomError,
  UnsupportedError,
} from "../core/errors.js";
import { isJsonObject, type JsonObject } from "../core/json.js";
import type { QuantizationConfig, QuantizationConfigFactory, QuantizationRequest } from "./contract.js";

interface Entry {
  readonly factory: QuantizationConfigFactory;
  readonly owner: string;
}

/** A user's wish to quantize. */
export interface QuantizationChoice {
  readonly method: string;
  /** What the method's config takes; keys are the method's. */
  readonly options: JsonObject;
}

/** Which method serves a model, and what it is told. Plain data: it crosses threads. */
export interface QuantizationSelection {
  readonly method: string;
  readonly origin: QuantizationRequest["origin"];
  readonly settings: JsonObject;
  readonly options: JsonObject;
}

/** Quantization formats by name, as plugins registered them. One registry an engine, filled alike in every thread. */
export class QuantizationRegistry {
  readonly #entries = new Map<string, Entry>();

  /**
   * Registers a format. The same factory twice is a no-op. Throws PluginError `INVALID_QUANTIZATION_CONFIG` for an object
   * that is no factory, `DUPLICATE_REGISTRATION`, naming both owners, for another one under a taken name.
   */
  register(name: string, factory: QuantizationConfigFactory, owner: string): void {
    checkFactory(name, factory, owner);
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

  /** Registered methods, in order. */
  get names(): readonly string[] {
    return [...this.#entries.keys()];
  }

  /**
   * The method for a model: that of config.json's `quantization_config`, or the one a user wants, or what a plugin makes
   * of the two. Null for a model that is not quantized and shall not be.
   *
   * Throws UnsupportedError `UNKNOWN_QUANTIZATION` when no plugin serves the method, OptionError `QUANTIZATION_CONFLICT`
   * when the user wants another one than the checkpoint's, CheckpointError `INVALID_CONFIG`.
   */
  select(config: JsonObject, choice: QuantizationChoice | null): QuantizationSelection | null {
    const settings = settingsOf(config);
    const onDisk = settings === null ? null : methodOf(settings);
    const options = choice?.options ?? {};
    const origin = settings === null ? "user" : "checkpoint";
    const overriding = this.#override(settings, choice?.method ?? null);
    if (overriding !== null) return { method: this.#checked(overriding), origin, settings: settings ?? {}, options };
    if (onDisk !== null && choice !== null && choice.method !== onDisk) {
      throw new OptionError(
        "QUANTIZATION_CONFLICT",
        `expected quantization ${JSON.stringify(onDisk)}, which the checkpoint is in, or none, but received ${JSON.stringify(choice.method)}`,
        { option: "quantization", expected: onDisk, received: choice.method },
      );
    }
    const method = onDisk ?? choice?.method;
    return method === undefined ? null : { method: this.#checked(method), origin, settings: settings ?? {}, options };
  }

  /** Makes the config of a selection for one rank. Throws what the plugin throws, or PluginError `PLUGIN_FAILED`. */
  create(
    selection: QuantizationSelection,
    checkpoint: QuantizationRequest["checkpoint"],
    group?: ReadGroup,
  ): QuantizationConfig {
    const { method, origin, settings, options } = selection;
    const together = group === undefined ? {} : { group };
    const { factory, owner } = this.#entry(method);
    return callHook(owner, `quantization config "${method}"`, () =>
      factory.create({ origin, settings, options, checkpoint, ...together }),
    );
  }

  #override(settings: JsonObject | null, userChoice: string | null): string | null {
    for (const { factory, owner } of this.#entries.values()) {
      const name = callHook(owner, "overrideQuantizationMethod", () => {
        return factory.overrideQuantizationMethod?.(settings, userChoice) ?? null;
      });
      if (name !== null) return name;
    }
    return null;
  }

  #checked(method: string): string {
    this.#entry(method);
    return method;
  }

  #entry(method: string): Entry {
    const entry = this.#entries.get(method);
    if (entry !== undefined) return entry;
    const known = this.names.join(", ") || "none";
    throw new UnsupportedError(
      "UNKNOWN_QUANTIZATION",
      `no plugin serves quantization ${JSON.stringify(method)} (registered: ${known}); install one that does, ` +
        `by convention @shardloom/${method.replaceAll(/[^a-z0-9-]/gi, "")}, and name it with --plugin`,
      { expected: known, received: method },
    );
  }
}

/**
 * Calls a plugin's hook. ShardloomErrors pass; anything else it throws becomes PluginError `PLUGIN_FAILED` naming the
 * plugin and what it was asked.
 */
export function callHook<Result>(plugin: string, what: string, hook: () => Result): Result {
  try {
    return hook();
  } catch (cause) {
    if (cause instanceof ShardloomError) throw cause;
    const reason = reasonOf(cause);
    throw new PluginError("PLUGIN_FAILED", `${plugin}: ${what} failed: ${reason}`, { plugin }, { cause });
  }
}

/** `quantization_config`, which multimodal models keep in `text_config`. */
function settingsOf(config: JsonObject): JsonObject | null {
  const text = config["text_config"];
  const value = config["quantization_config"] ?? (isJsonObject(text) ? text["quantization_config"] : null) ?? null;
  if (value === null || isJsonObject(value)) return value;
  throw invalid("quantization_config", "an object", value);
}

function methodOf(settings: JsonObject): string {
  const method = settings["quant_method"];
  if (typeof method !== "string" || method === "") throw invalid("quantization_config: quant_method", "a name", method);
  return method;
}

function invalid(key: string, expected: string, value: unknown): CheckpointError {
  const received = describeValue(value);
  return new CheckpointError(
    "INVALID_CONFIG",
    `config.json: expected ${key} to be ${expected} but received ${received}`,
    {
      file: "config.json",
      option: key,
      expected,
      received,
    },
  );
}

function checkFactory(name: unknown, factory: unknown, owner: string): void {
  const named = typeof name === "string" && name !== "";
  const creates =
    typeof factory === "object" && factory !== null && typeof Reflect.get(factory, "create") === "function";
  if (named && creates) return;
  throw new PluginError(
    "INVALID_QUANTIZATION_CONFIG",
    `${owner}: expected a name and a factory with create() but received ${describeValue(name)} and ${describeValue(factory)}`,
    { plugin: owner },
  );
}
