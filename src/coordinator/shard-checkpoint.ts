/**
 * Saves a model as a sharded state: every rank is loaded, one a thread at a time, and writes what it holds; then the
 * manifest says which part of which weight each file has. The directory gets its name when all is done.
 */
import { join } from "node:path";
import { checkSameVersions, type FileVersion } from "../checkpoint/open-file.js";
import { checkOutputApart, OutputDirectory } from "../checkpoint/output-directory.js";
import { invariant } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { threadEntry } from "../core/package-files.js";
import { safetensorsLoader } from "../loading/default-loader.js";
import { dtypeMembers, writeModelFiles, writeTextFile } from "../loading/model-files.js";
import type { ModelLoader } from "../loading/model-loader.js";
import type { Registries } from "../loading/plugins.js";
import {
  formatManifest,
  MANIFEST_FILE,
  type MatrixPiece,
  type StateManifest,
  type StateMatrix,
  type StateVector,
} from "../loading/sharded-state/manifest.js";
import { STATE_METHOD } from "../loading/sharded-state/quantization.js";
import { planGroup } from "../rank/group-plan.js";
import { type RankOptions, withoutText } from "../rank/rank-options.js";
import type { ShardTaskResult, ShardTaskSetup } from "../rank/shard-task.js";
import type { WrittenShard } from "../rank/shard-writer.js";
import { runTasks, throwIfCancelled } from "./task-pool.js";

const WORKER = threadEntry("shard-task").href;
const ACTIVITY = "writing a sharded state";
/** How often progress is told of ranks that are being written. */
const PROGRESS_MS = 200;

export interface ShardCheckpointRequest {
  /** What every rank is told; sizes do not matter. */
  readonly ranks: RankOptions;
  readonly loader: ModelLoader;
  readonly registries: Registries;
  /** File URLs of the plugins in the registries, in order. */
  readonly plugins: readonly string[];
  /** Absolute path of the new directory. */
  readonly out: string;
  readonly overwrite: boolean;
  readonly maxFileBytes: number;
  readonly threads: number;
  readonly onProgress?: ((progress: ShardProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How far saving has got. */
export interface ShardProgress {
  readonly ranksDone: number;
  readonly worldSize: number;
  /** Written so far. A rank is loaded as a whole before it is written. */
  readonly bytesDone: number;
  /** About: what the parameters of all ranks take. */
  readonly totalBytes: number;
}

/** What was made. */
export interface ShardReport {
  /** Absolute path of the new state. */
  readonly out: string;
  readonly worldSize: number;
  /** Files of weights, in the order of ranks. */
  readonly files: readonly { readonly name: string; readonly rank: number; readonly sizeBytes: number }[];
  readonly outputBytes: number;
}

/**
 * Throws, with nothing left behind: what loading a rank throws, UnsupportedError `UNSUPPORTED_SHARDED_STATE`, OptionError for
 * a wrong output, RequestError `CANCELLED`, and ShardloomError `WRITE_FAILED`, `INSUFFICIENT_SPACE`, `TASK_FAILED`.
 */
export async function shardCheckpoint(request: ShardCheckpointRequest): Promise<ShardReport> {
  const { ranks, registries, out, overwrite, signal } = request;
  checkOutputApart(out, ranks.path);
  const { ownership } = await planGroup(ranks, registries);
  const totalBytes = ownership.ranks.reduce((sum, { parameterBytes }) => sum + parameterBytes, 0);
  throwIfCancelled(signal, ACTIVITY);
  const directory = OutputDirectory.create(out, totalBytes, { overwrite });
  try {
    const report = await write(request, directory.path, totalBytes);
    directory.commit();
    return report;
  } catch (error) {
    directory.discard();
    throw error;
  }
}

async function write(request: ShardCheckpointRequest, directory: string, totalBytes: number): Promise<ShardReport> {
  const { ranks, plugins, threads, maxFileBytes, signal, onProgress, out, loader } = request;
  const { worldSize } = ranks;
  const shards = new Map<number, WrittenShard>();
  const written = new BigInt64Array(new SharedArrayBuffer(8));
  const setup: ShardTaskSetup = { options: withoutText(ranks), plugins, directory, maxFileBytes, written };
  const report = (): void => {
    onProgress?.({ ranksDone: shards.size, worldSize, bytesDone: Number(Atomics.load(written, 0)), totalBytes });
  };
  const readers: { readonly name: string; readonly files: readonly FileVersion[] }[] = [];
  const ticking = setInterval(() => {
    try {
      report();
    } catch {
      // Whatever the caller's function throws, it throws again when a rank is done, where it ends the work.
      clearInterval(ticking);
    }
  }, PROGRESS_MS);
  try {
    await runTasks<number, ShardTaskResult>(
      Array.from({ length: worldSize }, (_, rank) => rank),
      {
        worker: { filename: WORKER, name: "runShardTask", setup, activity: ACTIVITY },
        threads,
        signal,
        done: (rank, { written: shard, sources }) => {
          shards.set(rank, shard);
          readers.push({ name: `rank ${rank}`, files: sources });
          report();
        },
      },
    );
  } finally {
    clearInterval(ticking);
  }
  checkSameVersions(readers);
  const inOrder = [...shards].toSorted(([a], [b]) => a - b).map(([, shard]) => shard);
  const manifest = manifestOf(inOrder, ranks);
  writeTextFile(join(directory, MANIFEST_FILE), formatManifest(manifest));
  const source = { path: ranks.path, description: ranks.description, isHuggingFace: loader === safetensorsLoader };
  writeModelFiles(directory, source, configMembers(manifest, ranks.description.config));
  const files = manifest.files.map(({ name, rank, sizeBytes }) => ({ name, rank, sizeBytes }));
  return { out, worldSize, files, outputBytes: files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) };
}

/** Joins what ranks have written. */
function manifestOf(shards: readonly WrittenShard[], { worldSize, dtype }: RankOptions): StateManifest {
  const codebooks = new Map<string, readonly number[]>();
  const matrices = new Map<string, { outputs: number; inputs: number; pieces: MatrixPiece[] }>();
  const vectors = new Map<string, { vector: StateVector; pieces: StateVector["pieces"][number][] }>();
  for (const shard of shards) {
    const places = shard.codebooks.map((entries) => {
      const key = entries.join(" ");
      if (!codebooks.has(key)) codebooks.set(key, entries);
      return [...codebooks.keys()].indexOf(key);
    });
    for (const { name, outputs, inputs, pieces } of shard.matrices) {
      const matrix = matrices.get(name) ?? { outputs, inputs, pieces: [] };
      matrix.pieces.push(...pieces.map((piece) => withCodebook(piece, places)));
      matrices.set(name, matrix);
    }
    for (const vector of shard.vectors) {
      const known = vectors.get(vector.name) ?? { vector, pieces: [] };
      known.pieces.push(...vector.pieces);
      vectors.set(vector.name, known);
    }
  }
  return {
    worldSize,
    dtype,
    files: shards.flatMap(({ files }) => files),
    codebooks: [...codebooks.values()],
    matrices: [...matrices].map(([name, matrix]): StateMatrix => ({ name, ...matrix })),
    vectors: [...vectors.values()].map(({ vector, pieces }) => ({ ...vector, pieces })),
  };
}

/** A rank counts its own codebooks; the manifest counts those of all. */
function withCodebook(piece: MatrixPiece, places: readonly number[]): MatrixPiece {
  const { storage } = piece;
  if (storage.format !== "code4") return piece;
  const codebook = places[storage.codebook];
  invariant(codebook !== undefined, `a piece names codebook ${storage.codebook} of ${places.length}`);
  return { ...piece, storage: { ...storage, codebook } };
}

/** What becomes of config.json: unless all weights are plain numbers, the state has a method of its own. */
function configMembers({ matrices, dtype }: StateManifest, config: JsonObject): ReadonlyMap<string, string> {
  const plain = matrices.every(({ pieces }) => {
    return pieces.every(({ storage }) => storage.format === "dense" && storage.dtype === dtype);
  });
  const method = JSON.stringify({ quant_method: STATE_METHOD });
  const quantized = !plain || JSON.stringify(config).includes('"quantization_config"');
  return new Map([...dtypeMembers(dtype, config), ...(quantized ? [["quantization_config", method] as const] : [])]);
}
