import { CheckpointError, type ShardIndexer, type ShardIndexQuery } from "shardloom/plugin";

/**
 * The shard indexer of codes in the shape they have on disk, `[bytes, 1]`, for a fused layer of `inputs` inputs: a row is
 * `inputs / 2` storage elements. It scales the extent it is given, which counts rows of this rank or of the loaded weight,
 * whichever is asked about. So it holds where a rule over ratios of original offsets does not: with replicated KV heads,
 * where parts do not shrink alike. Throws CheckpointError `INEXACT_PACKING` for rows that end inside a byte.
 */
export function rowIndexer(inputs: number, weight: string): ShardIndexer {
  return ({ extent: { offset, size }, ...query }) => {
    return { offset: storageOf(offset, inputs, weight, query), size: storageOf(size, inputs, weight, query) };
  };
}

function storageOf(
  rows: number,
  inputs: number,
  tensor: string,
  { rank, shardId }: Pick<ShardIndexQuery, "rank" | "shardId">,
): number {
  const bytes = (rows * inputs) / 2;
  if (Number.isInteger(bytes)) return bytes;
  throw new CheckpointError(
    "INEXACT_PACKING",
    `${tensor}: expected rows of an even number of codes, two to a byte, but shard ${shardId} on rank ${rank} is cut ` +
      `after ${rows} rows of ${inputs}`,
    { tensor, expected: "whole bytes", received: rows * inputs, rank, shardId },
  );
}
