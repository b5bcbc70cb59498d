/** Models for tests of loading: a fixture's tensors, some of them changed, in other files; and ranks that load them. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { INDEX_FILE } from "../../src/checkpoint/index-file.js";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import type { SharedReads } from "../../src/checkpoint/shared-reads.js";
import { type DType, dtypeBytes, type FloatDType } from "../../src/core/dtype.js";
import type { Logger } from "../../src/core/logger.js";
import { elementCount } from "../../src/core/tensor.js";
import { planCapacity } from "../../src/engine/capacity.js";
import { createReferenceKernels } from "../../src/kernels/reference.js";
import { createRegistries, type Plugin, registerPlugin } from "../../src/loading/plugins.js";
import { selectFamily } from "../../src/models/registry.js";
import type { QuantizationChoice } from "../../src/quantization/registry.js";
import { loadRankModel, type RankModel } from "../../src/rank/rank-model.js";
import { safetensorsBytes } from "../checkpoint/files.js";

export interface StoredTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** All tensors of a model's directory. */
export function tensorsOf(directory: string): Map<string, StoredTensor> {
  const checkpoint = SafetensorsDirectory.open(directory);
  const tensors = [...checkpoint.tensors.values()].map((tensor) => {
    const { name, dtype, shape } = tensor;
    const bytes = new Uint8Array(elementCount(shape) * dtypeBytes(dtype));
    tensor.read(bytes, 0);
    return [name, { dtype, shape, bytes }] as const;
  });
  checkpoint.close();
  return new Map(tensors);
}

export function configOf(directory: string): Record<string, unknown> {
  return JSON.parse(readFileSync(join(directory, "config.json"), "utf8"));
}

/** Writes a model. With `fileOf`, its tensors go to several files, which an index names. */
export function writeModel(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  tensors: ReadonlyMap<string, StoredTensor>,
  fileOf?: (name: string) => string,
): string {
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  const nameOf = fileOf ?? (() => "model.safetensors");
  for (const file of new Set([...tensors.keys()].map(nameOf))) {
    const entries = [...tensors].filter(([name]) => nameOf(name) === file);
    let offset = 0;
    const header = entries.map(([name, { dtype, shape, bytes }]) => {
      const data_offsets = [offset, offset + bytes.length];
      offset += bytes.length;
      return [name, { dtype: dtype.toUpperCase(), shape, data_offsets }];
    });
    const data = Buffer.concat(entries.map(([, { bytes }]) => bytes));
    writeFileSync(join(directory, file), safetensorsBytes(Object.fromEntries(header), data));
  }
  if (fileOf !== undefined) {
    const weight_map = Object.fromEntries([...tensors.keys()].map((name) => [name, fileOf(name)]));
    writeFileSync(join(directory, INDEX_FILE), JSON.stringify({ metadata: {}, weight_map }));
  }
  return directory;
}

export interface LoadRanksOptions {
  readonly plugins?: readonly Plugin[];
  /** dtype of unquantized weights; config.json's by default. */
  readonly dtype?: FloatDType;
  readonly logger?: Logger;
  /** How the weights are to be quantized while they are loaded. */
  readonly choice?: QuantizationChoice;
  /** How ranks share what several of them load. */
  readonly shared?: SharedReads;
}

/** Loads every rank of a model, as in production, in the calling thread. */
export async function loadRanks(path: string, worldSize: number, options: LoadRanksOptions = {}): Promise<RankModel[]> {
  const registries = createRegistries();
  for (const plugin of options.plugins ?? []) registerPlugin(registries, plugin);
  const loader = registries.modelLoaders.select(path);
  const description = await loader.describe(path);
  const config = selectFamily(description.config).parseConfig(description.config);
  const rankOptions = {
    path,
    loadFormat: loader.format,
    description,
    worldSize,
    dtype: options.dtype ?? config.dtype,
    kvCacheDtype: "f32",
    activations: "f32",
    quantization: registries.quantization.select(description.config, options.choice ?? null),
    ...planCapacity(config, { maxTokensPerStep: 8, maxSequences: 1 }, worldSize, "f32"),
  } as const;
  const { logger, shared } = options;
  const ranks: RankModel[] = [];
  for (let rank = 0; rank < worldSize; rank++) {
    const kernels = createReferenceKernels();
    const dependencies = { registries, kernels, shared, ...(logger === undefined ? {} : { logger }) };
    ranks.push(await loadRankModel(rankOptions, rank, dependencies));
  }
  return ranks;
}
