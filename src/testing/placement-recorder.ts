/** What shard indexers were asked while weights were loaded, and when original offsets were computed. */
import type { OffsetScope, PlacementObserver } from "../layers/shard-placement.js";
import type { Extent, ShardId } from "../quantization/contract.js";

/** One question to a shard indexer, and its answer. */
export interface IndexerCall {
  readonly rank: number;
  /** `model.layers.0.self_attn.qkv_proj.weight` */
  readonly parameter: string;
  readonly shardId: ShardId;
  readonly of: "destination" | "source";
  /** What the layer would use without an indexer. */
  readonly extent: Extent;
  readonly storageExtent: number;
  readonly sourceIsLocal: boolean;
  /** What the indexer returned, before it was checked. */
  readonly answer: Extent;
}

/** The original offsets of a layer were computed. */
export interface OffsetComputation {
  readonly rank: number;
  readonly layer: string;
  /** Of whole matrices, or of the rank's own rows. */
  readonly scope: OffsetScope;
}

export class PlacementRecorder {
  readonly #calls: IndexerCall[] = [];
  readonly #computations: OffsetComputation[] = [];

  /** What layers tell; they know the rank. */
  readonly observer: PlacementObserver = {
    indexed: ({ name: parameter }, { rank, shardId, of, extent, storageExtent, sourceIsLocal }, answer) => {
      this.#calls.push({ rank, parameter, shardId, of, extent, storageExtent, sourceIsLocal, answer });
    },
    offsetsComputed: ({ rank, prefix: layer }, scope) => {
      this.#computations.push({ rank, layer, scope });
    },
  };

  /** By rank, whatever the order in which ranks were loaded; of one rank, in the order of loading. */
  get indexerCalls(): readonly IndexerCall[] {
    return this.#calls.toSorted((a, b) => a.rank - b.rank);
  }

  /** Likewise. */
  get offsetComputations(): readonly OffsetComputation[] {
    return this.#computations.toSorted((a, b) => a.rank - b.rank);
  }
}
