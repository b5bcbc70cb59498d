/**
 * From logical rows and columns to storage: where a part of a loaded weight goes in a parameter, and which part of the
 * loaded weight this rank takes. The steps, in order: block scale, packing, shard indexer. Original offsets are computed
 * only when a shard indexer asks, at most once a layer and kind of place.
 */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { cdiv, type Range, rangeSize } from "../parallel/partition.js";
import type { Extent, LinearLayer, LinearPart, OriginalOffsets, ShardIndexQuery } from "../quantization/contract.js";
import { callHook } from "../quantization/registry.js";
import { type HeldRows, heldRows } from "./held-rows.js";
import { checkExtent, narrow, type Parameter, packExactly, wholeOf } from "./parameter.js";

/** How the loaded weight holds a part. */
export interface SourcePlace {
  /** One tensor holds several parts, rows concatenated. */
  readonly fused: boolean;
  /** Logical row of the loaded weight at which row 0 of the part lies, or would lie. */
  readonly base: number;
  /** Logical rows of the loaded weight. */
  readonly total: number;
  /** Those of this rank's rows of the part that lie there in one piece; all of them by default. */
  readonly rows?: Range;
}

/** Which logical matrices original offsets count: whole ones, or this rank's rows of them. */
export type OffsetScope = "global" | "local";

/** Hears how shards are placed while weights are loaded. */
export interface PlacementObserver {
  /** A shard indexer has answered. */
  indexed?(parameter: Parameter, query: ShardIndexQuery, answer: Extent): void;
  /** The original offsets of a layer were computed. */
  offsetsComputed?(layer: LinearLayer, scope: OffsetScope): void;
}

export class ShardPlacement {
  readonly #layer: LinearLayer;
  readonly #observer: PlacementObserver;
  readonly #computeOffsets: (layer: LinearLayer, scope: OffsetScope) => OriginalOffsets;
  readonly #offsets: Partial<Record<OffsetScope, OriginalOffsets>> = {};

  /** `compute` is there for tests to count its calls. */
  constructor(layer: LinearLayer, compute = originalOffsets, observer: PlacementObserver = {}) {
    this.#layer = layer;
    this.#observer = observer;
    this.#computeOffsets = compute;
  }

  /** Loads this rank's share of one part. Throws CheckpointError. */
  load(parameter: Parameter, source: CheckpointTensor, part: LinearPart, place: SourcePlace): void {
    const { outputDim, scalarSlots } = parameter.spec;
    if (outputDim === null && scalarSlots) {
      parameter.load(source, wholeOf(source.shape), partsHeld(parameter, this.#layer).indexOf(part), part.shardId);
      return;
    }
    const held = (): readonly HeldRows[] => this.#heldRows(parameter, part, place);
    let ranges = wholeOf(source.shape);
    if (!parameter.spec.isSharded) ranges = this.#narrowInputs(parameter, source, ranges);
    if (outputDim === null) {
      parameter.load(source, ranges, 0, null, held);
      return;
    }
    const logical = this.#destination(parameter, part, place);
    const destination = this.#index(parameter, part, logical, place, "destination", parameter.extent);
    const sourceExtent = source.shape[outputDim];
    if (sourceExtent === undefined) {
      throw parameter.mismatch(source, `a dimension ${outputDim}`, `${source.shape.length} dimensions`);
    }
    const wanted = this.#source(parameter, source, part, place, sourceExtent);
    if (wanted.size !== destination.size) {
      throw parameter.mismatch(source, `${destination.size} along dimension ${outputDim}`, `${wanted.size}`);
    }
    parameter.load(source, narrow(ranges, outputDim, wanted), destination.offset, part.shardId, held);
  }

  /** How many ranks load the rows of a part from the same place; none where each loads something of its own. */
  #heldRows({ spec }: Parameter, part: LinearPart, place: SourcePlace): readonly HeldRows[] {
    const { kind, worldSize } = this.#layer;
    if (spec.isSharded || (kind === "row" && spec.inputDim !== null)) return [];
    const rows = place.rows ?? part.rows;
    // What no dimension is split of is whole on every rank.
    return spec.outputDim === null ? [{ rows: rangeSize(rows), holders: worldSize }] : heldRows(rows, part.split);
  }

  #narrowInputs(parameter: Parameter, source: CheckpointTensor, ranges: Range[]): Range[] {
    const { inputDim, blockScale } = parameter.spec;
    const { inputs, inputSize } = this.#layer;
    if (inputDim === null) return ranges;
    const total = toStorage(parameter, { offset: 0, size: inputSize }, inputDim, blockScale?.inputs).size;
    if (source.shape[inputDim] !== total) {
      throw parameter.mismatch(source, `${total} along dimension ${inputDim}`, `${source.shape[inputDim]}`);
    }
    const own = { offset: inputs.start, size: rangeSize(inputs) };
    return narrow(ranges, inputDim, toStorage(parameter, own, inputDim, blockScale?.inputs));
  }

  /** Storage extent of a part, or of a piece of it, in the parameter, before the indexer. */
  #destination(parameter: Parameter, part: LinearPart, place: SourcePlace): Extent {
    const { outputDim, blockScale } = parameter.spec;
    const held = partsHeld(parameter, this.#layer);
    const rows = place.rows ?? part.rows;
    if (blockScale === undefined) {
      const offset = part.localOffset - (held[0]?.localOffset ?? 0) + rows.start - part.rows.start;
      return toStorage(parameter, { offset, size: rangeSize(rows) }, outputDim, undefined);
    }
    // A part takes the blocks that its rows touch, of the one grid that runs through the loaded weight. Where it begins
    // inside a block that is one more than its rows fill, so parts take room by where they lie in that tensor.
    const shift = place.base - this.#firstRow(part);
    const touched = (each: LinearPart, within: Range): Range => {
      const base = place.fused ? Math.max(0, this.#firstRow(each) + shift) : 0;
      const { outputs } = blockScale;
      return { start: Math.floor((base + within.start) / outputs), end: cdiv(base + within.end, outputs) };
    };
    const before = held.slice(0, held.indexOf(part));
    const first = before.reduce((sum, each) => sum + rangeSize(touched(each, each.rows)), 0);
    const blocks = touched(part, rows);
    return { offset: first + blocks.start - touched(part, part.rows).start, size: rangeSize(blocks) };
  }

  /** Row of the whole layer at which a part begins, all ranks' rows counted. */
  #firstRow(part: LinearPart): number {
    const { parts } = this.#layer;
    return parts.slice(0, parts.indexOf(part)).reduce((sum, { outputSize }) => sum + outputSize, 0);
  }

  /** Storage extent of this rank's share of a part in the loaded weight. */
  #source(
    parameter: Parameter,
    source: CheckpointTensor,
    part: LinearPart,
    place: SourcePlace,
    extent: number,
  ): Extent {
    const { outputDim, blockScale, isSharded, shardIndexer } = parameter.spec;
    if (isSharded && !place.fused) return { offset: 0, size: extent };
    const rows = place.rows ?? part.rows;
    const offset = isSharded ? part.localOffset + rows.start - part.rows.start : place.base + rows.start;
    const logical = { offset, size: rangeSize(rows) };
    const storage = toStorage(parameter, logical, outputDim, blockScale?.outputs);
    if (shardIndexer !== undefined) return this.#index(parameter, part, storage, place, "source", extent);
    const total = isSharded
      ? parameter.extent
      : toStorage(parameter, { offset: 0, size: place.total }, outputDim, blockScale?.outputs).size;
    if (extent !== total) {
      throw parameter.mismatch(source, `${total} along dimension ${outputDim}`, `${extent}`);
    }
    return storage;
  }

  #index(
    parameter: Parameter,
    part: LinearPart,
    extent: Extent,
    place: SourcePlace,
    of: "destination" | "source",
    storageExtent: number,
  ): Extent {
    const { shardIndexer, isSharded } = parameter.spec;
    if (shardIndexer === undefined || part.shardId === null) return extent;
    const { rank, worldSize } = this.#layer;
    const query: ShardIndexQuery = {
      of,
      shardId: part.shardId,
      extent,
      storageExtent,
      originalOffsets: () => this.#originalOffsets(place.fused),
      rank,
      worldSize,
      sourceIsLocal: isSharded ?? false,
    };
    const what = `shard indexer of ${parameter.name}, shard ${part.shardId}, on rank ${rank}`;
    const indexed = callHook("a quantization plugin", what, () => shardIndexer(query));
    this.#observer.indexed?.(parameter, query, indexed);
    return checkExtent(indexed, storageExtent, `${parameter.name}, ${of} of shard ${part.shardId}`, rank);
  }

  /**
   * Logical offsets as vLLM hands them to its indexer: a merged layer's from whole matrices, QKV's from this rank's rows
   * for a single shard and from whole matrices when fused on disk.
   */
  #originalOffsets(fused: boolean): OriginalOffsets {
    const scope = this.#layer.kind === "qkv" && !fused ? "local" : "global";
    let offsets = this.#offsets[scope];
    if (offsets === undefined) {
      offsets = this.#computeOffsets(this.#layer, scope);
      this.#observer.offsetsComputed?.(this.#layer, scope);
      this.#offsets[scope] = offsets;
    }
    return offsets;
  }
}

/** The logical matrices a parameter holds, in order. */
export function partsHeld(parameter: Parameter, layer: LinearLayer): readonly LinearPart[] {
  const { parts } = parameter.spec;
  if (parts === undefined) return layer.parts;
  return layer.parts.filter(({ shardId }) => shardId !== null && parts.includes(shardId));
}

/** Prefix sums of the rows of a layer's logical matrices, by shard id, and their "total". */
export function originalOffsets(layer: LinearLayer, scope: OffsetScope): OriginalOffsets {
  const offsets = new Map<string, Extent>();
  let offset = 0;
  for (const part of layer.parts) {
    const size = scope === "local" ? rangeSize(part.rows) : part.outputSize;
    offsets.set(String(part.shardId), { offset, size });
    offset += size;
  }
  offsets.set("total", { offset: 0, size: offset });
  return offsets;
}

/** Logical extent along `dim` to storage: block counts for a block scale, exact division for packing. */
function toStorage(parameter: Parameter, logical: Extent, dim: number | null, block: number | undefined): Extent {
  let { offset, size } = logical;
  if (block !== undefined) {
    const first = Math.floor(offset / block);
    size = cdiv(offset + size, block) - first;
    offset = first;
  }
  const { packed } = parameter.spec;
  if (packed !== undefined && packed.dim === dim) {
    offset = packExactly(parameter, offset, packed.factor);
    size = packExactly(parameter, size, packed.factor);
  }
  return { offset, size };
}
