/** Where the files of benches come from: the sample model, and made-up ones that are written once and kept. */
import { spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { LaunchOptions } from "../../src/index.js";
import { madeUpMix, type WeightMix, weightBytesPerToken, writeMadeUpModel } from "./made-up-model.js";
import { type ModelShape, SMOLLM2_135M, weightCounts } from "./shapes.js";

/** Of the files made here. Changes when their bytes do. */
const FILE_VERSION = 1;

/** A model that a bench runs. */
export interface BenchModel {
  readonly shape: ModelShape;
  /** Name of its weights, as in WEIGHT_MIXES. */
  readonly weights: string;
  readonly path: string;
  /** Bytes of weights, as they stand in the file or as shardloom quantizes them, that one token is multiplied with. */
  readonly weightBytes: number;
  /** How shardloom launches it. */
  readonly launch?: Pick<LaunchOptions, "quantization" | "quantizationOptions">;
  /** What peers run instead, where they cannot run this: the same shape in weights of as many bits. */
  readonly peerModel?: BenchModel;
}

/** As --weights names it. */
export const NF4 = "NF4";
/** Codes of 4 bits, and a scale of 4 bytes for 64 of them. */
const NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64;

/** What the sample model's file holds. */
const SAMPLE_MIX: WeightMix = { name: "Q4_1", layers: "Q4_1", head: "Q8_0" };

/** The sample model, fetched if needed. Throws an Error when it cannot be had. */
export function sampleBenchModel(): BenchModel {
  const script = fileURLToPath(new URL("../../../scripts/fetch-sample-model.mjs", import.meta.url));
  const { status, stdout } = spawnSync(process.execPath, [script], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (status !== 0) throw new Error("the sample model could not be fetched: npm run sample-model says why");
  const weightBytes = weightBytesPerToken(SMOLLM2_135M, SAMPLE_MIX);
  return { shape: SMOLLM2_135M, weights: SAMPLE_MIX.name, path: stdout.trim(), weightBytes };
}

/** A made-up model out of the user's cache, written if needed; `report` hears of it. */
export async function madeUpBenchModel(
  shape: ModelShape,
  mix: WeightMix,
  report: (line: string) => void,
): Promise<BenchModel> {
  const folder = join(await cacheFolder(), "bench");
  const path = join(folder, `${shape.name}.${mix.name}.v${FILE_VERSION}.gguf`);
  if (!existsSync(path)) {
    report(`writing ${path}`);
    mkdirSync(folder, { recursive: true });
    const partial = join(folder, `${randomUUID()}.partial`);
    try {
      writeMadeUpModel(partial, shape, mix);
      renameSync(partial, path);
    } finally {
      rmSync(partial, { force: true });
    }
  }
  return { shape, weights: mix.name, path, weightBytes: weightBytesPerToken(shape, mix) };
}

/**
 * The shape in bitsandbytes' NF4, which shardloom quantizes while it loads the BF16 file; its output head stays BF16, as
 * bitsandbytes leaves it. Peers run Q4_0.
 */
export async function nf4BenchModel(shape: ModelShape, report: (line: string) => void): Promise<BenchModel> {
  const { path } = await madeUpBenchModel(shape, madeUpMix("BF16"), report);
  const peerModel = await madeUpBenchModel(shape, madeUpMix("Q4_0"), report);
  const { layers, head } = weightCounts(shape);
  const weightBytes = layers * NF4_BYTES_PER_WEIGHT + head * 2;
  const launch = { quantization: "bitsandbytes", quantizationOptions: { type: "nf4" } };
  return { shape, weights: NF4, path, weightBytes, launch, peerModel };
}

/** The folder that the sample model is kept in as well. */
export async function cacheFolder(): Promise<string> {
  const script: { cacheFolder(): string } = await import(
    new URL("../../../scripts/sample-model.mjs", import.meta.url).href
  );
  return script.cacheFolder();
}
