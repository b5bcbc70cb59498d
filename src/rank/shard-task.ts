/** What the thread of a shard task does: it loads one rank's part of a model and writes it. */
import type { FileVersion } from "../checkpoint/open-file.js";
import { type TransferableError, toTransferable, withRank } from "../core/errors.js";
import { createReferenceKernels } from "../kernels/reference.js";
import { loadPlugins } from "../loading/plugins.js";
import { loadRankModel } from "./rank-model.js";
import type { RankOptions } from "./rank-options.js";
import { type WrittenShard, writeShard } from "./shard-writer.js";

/** What all tasks have in common. Plain data: `workerData` of their threads. */
export interface ShardTaskSetup {
  readonly options: RankOptions;
  /** File URLs of the plugins to load, in order. */
  readonly plugins: readonly string[];
  readonly directory: string;
  readonly maxFileBytes: number;
  /** Memory that all tasks share: the bytes that they have written together. */
  readonly written: WrittenBytes;
}

/** A count of bytes in shared memory. */
export type WrittenBytes = BigInt64Array<SharedArrayBuffer>;

export interface ShardTaskResult {
  readonly written: WrittenShard;
  /** What it was made of. */
  readonly sources: readonly FileVersion[];
}

/** Errors are values: a thread pool's own would lose their class, code and fields. */
export type ShardTaskOutcome =
  | { readonly ok: true; readonly result: ShardTaskResult }
  | { readonly ok: false; readonly error: TransferableError };

/** Writes ranks, one after another. */
export function createShardTaskRunner(setup: ShardTaskSetup): (rank: number) => Promise<ShardTaskOutcome> {
  const { options, plugins, directory, maxFileBytes, written: total } = setup;
  const count = (bytes: number): void => {
    Atomics.add(total, 0, BigInt(bytes));
  };
  return async (rank) => {
    try {
      const registries = await loadPlugins(plugins);
      // These leave weights in the order that execution formats define; nothing is computed.
      const model = await loadRankModel(options, rank, { registries, kernels: createReferenceKernels() });
      const written = writeShard(model, directory, maxFileBytes, count);
      return { ok: true, result: { written, sources: model.report.files } };
    } catch (error) {
      return { ok: false, error: toTransferable(withRank(error, rank)) };
    }
  };
}
