/** From a user's options to what every rank of a simulation is told. */
import type { QuantizationOptions } from "../api/model-selection.js";
import { checkDtype, choiceOf } from "../api/option-checks.js";
import { resolveModel } from "../checkpoint/model-dir.js";
import { type CollectivePayload, checkCollectivePayload } from "../collectives/payload.js";
import type { FloatDType } from "../core/dtype.js";
import { describeValue, OptionError } from "../core/errors.js";
import { type JsonObject, readJsonObject } from "../core/json.js";
import { checkWorldSize } from "../core/rank.js";
import { type CapacityOptions, planCapacity } from "../engine/capacity.js";
import { checkKvCacheDtype, type KvCacheDType } from "../kernels/kv-cache-dtype.js";
import { dummyLoader, withoutQuantization } from "../loading/dummy-loader.js";
import type { ModelDescription } from "../loading/model-loader.js";
import { createRegistries, type Plugin, type Registries, registerPlugin } from "../loading/plugins.js";
import { selectFamily } from "../models/registry.js";
import type { RankOptions } from "../rank/rank-options.js";

/** The model of a simulation, and how it is split. Either `model` or `config` is needed. */
export interface ModelOptions extends QuantizationOptions, CapacityOptions {
  /** A directory, a file, or a hub id `org/name[@revision]`, as for launch(). */
  readonly model?: string | undefined;
  /** A config, or the path of a config.json, without weights: they are made up from `seed`, the same at any world size. */
  readonly config?: string | JsonObject | undefined;
  /** Ranks: 1 to 64, whatever the machine has. */
  readonly worldSize: number;
  /** Plugins, in the order in which they are to register. */
  readonly plugins?: readonly Plugin[] | undefined;
  /** Name of a model loader; "dummy" makes weights up also where the model has some. */
  readonly loadFormat?: string | undefined;
  /** dtype of unquantized weights; "auto" takes config.json's. */
  readonly dtype?: "auto" | FloatDType | undefined;
  /** dtype of the KV cache. Default f32. */
  readonly kvCacheDtype?: KvCacheDType | undefined;
  /** What all-reduces carry, as for launch(). Default f32. */
  readonly collectivePayload?: CollectivePayload | undefined;
  /** Seed of weights that are made up and of shuffled turns: a whole number of 32 bits. Default 0. */
  readonly seed?: number | undefined;
}

export interface Preparation {
  readonly ranks: RankOptions;
  readonly registries: Registries;
  readonly seed: number;
}

/** Small enough for dozens of ranks in one process; every one can be set. */
const DEFAULTS = { maxModelLength: 512, maxSequences: 8, maxTokensPerStep: 128 };

/** Throws OptionError, and what launch() throws before it starts ranks. */
export async function prepare(options: ModelOptions): Promise<Preparation> {
  const worldSize = checkWorldSize(options.worldSize, "worldSize");
  const seed = checkSeed(options.seed ?? 0);
  const registries = createRegistries();
  for (const plugin of options.plugins ?? []) registerPlugin(registries, plugin);
  const { path, loadFormat, description } = await findModel(options, registries);
  const config = selectFamily(description.config).parseConfig(description.config);
  const kvCacheDtype = checkKvCacheDtype(options.kvCacheDtype ?? "f32");
  const { dtype = "auto" } = options;
  const capacity = planCapacity(config, sizes(options, config.maxPositions), worldSize, kvCacheDtype);
  const ranks: RankOptions = {
    path,
    loadFormat,
    description,
    worldSize,
    quantization: registries.quantization.select(description.config, choiceOf(options)),
    dtype: dtype === "auto" ? config.dtype : checkDtype("dtype", dtype),
    kvCacheDtype,
    activations: "f32",
    collectivePayload: checkCollectivePayload(options.collectivePayload ?? "f32"),
    ...capacity,
    weightSeed: seed,
  };
  return { ranks, registries, seed };
}

/** Unlike in production, nothing depends on the memory of the machine. */
function sizes(options: CapacityOptions, maxPositions: number): CapacityOptions {
  const maxSequences = options.maxSequences ?? DEFAULTS.maxSequences;
  return {
    maxModelLength: options.maxModelLength ?? Math.min(DEFAULTS.maxModelLength, maxPositions),
    maxSequences,
    maxTokensPerStep: options.maxTokensPerStep ?? Math.max(DEFAULTS.maxTokensPerStep, maxSequences),
    kvCacheBytes: options.kvCacheBytes ?? Number.MAX_SAFE_INTEGER,
    blockSize: options.blockSize,
  };
}

interface FoundModel {
  readonly path: string;
  readonly loadFormat: string;
  readonly description: ModelDescription;
}

async function findModel(
  { model, config, loadFormat }: ModelOptions,
  { modelLoaders }: Registries,
): Promise<FoundModel> {
  if ((model === undefined) === (config === undefined)) {
    const received = model === undefined ? "neither" : "both";
    throw new OptionError("INVALID_OPTION", `expected either model or config but received ${received}`, {
      option: "model",
      expected: "model or config",
      received,
    });
  }
  if (model !== undefined) {
    const { path } = await resolveModel(model);
    const loader = modelLoaders.select(path, loadFormat);
    return { path, loadFormat: loader.format, description: await loader.describe(path) };
  }
  if (loadFormat !== undefined && loadFormat !== dummyLoader.format) {
    throw new OptionError(
      "INVALID_OPTION",
      `expected loadFormat "dummy" with a config alone but received ${JSON.stringify(loadFormat)}`,
      { option: "loadFormat", expected: dummyLoader.format, received: loadFormat },
    );
  }
  const path = typeof config === "string" ? config : "config.json";
  const json = typeof config === "string" ? readJsonObject(config) : (config ?? {});
  const description = {
    config: withoutQuantization(json),
    generationConfig: null,
    tokenizer: null,
    chatTemplate: null,
  };
  return { path, loadFormat: dummyLoader.format, description };
}

function checkSeed(seed: unknown): number {
  if (typeof seed === "number" && Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32) return seed;
  throw new OptionError(
    "INVALID_OPTION",
    `expected seed to be a whole number from 0 to ${2 ** 32 - 1} but received ${describeValue(seed)}`,
    { option: "seed", expected: `0..${2 ** 32 - 1}`, received: String(seed) },
  );
}
