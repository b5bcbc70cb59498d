/**
 * Bytes that several ranks of a group need: whoever comes first makes them, usually by reading a file, and the others find
 * them in memory. So a checkpoint is read once, however many ranks hold the same parts of it, and work that all would do
 * alike is done by all together. Nothing depends on it but time: who finds no memory, or waits in vain, makes the bytes for
 * itself.
 */

/** Bytes that some ranks need. */
export interface SharedItem {
  /** The same for the same bytes, on every rank. */
  readonly key: string;
  readonly sizeBytes: number;
  /** Makes them. What it throws, `acquire` throws on this rank; another rank then tries for itself. It acquires nothing. */
  fill(destination: Uint8Array): void;
}

/** Bytes of an item, to be read, not written. */
export interface SharedPiece {
  readonly bytes: Uint8Array;
  /** To be called once; the bytes are not to be used afterwards. */
  release(): void;
}

export interface SharedReads {
  /** Less than so many bytes are not worth it. */
  readonly leastBytes: number;
  /**
   * The bytes of items, in their order. What nobody has begun to make is made first, and what others are making is waited
   * for last. `takers` ranks will acquire each item once; when they have all released it, its memory is used for others.
   */
  acquire(items: readonly SharedItem[], takers: number): readonly SharedPiece[];
}

/** The ranks that load together. */
export interface ReadGroup {
  readonly worldSize: number;
  readonly reads: SharedReads;
}

/** Hears when a rank waits for what another one makes. */
export interface WaitObserver {
  enter(phase: "wait"): void;
  leave(): void;
}

/** An item that is made for one rank alone. */
export function privatePiece({ sizeBytes, fill }: SharedItem): SharedPiece {
  const bytes = new Uint8Array(sizeBytes);
  fill(bytes);
  return { bytes, release: () => {} };
}

/**
 * Less is not worth a look. It is little, because it may stand for much: the scales of a few rows are there for whoever read
 * these rows, and others would have to read them, or quantize them, again.
 */
export const LEAST_SHARED_BYTES = 64;

/** For ranks that take turns in one thread: nobody is ever in the middle of making something. */
export function sharedReadsInTurns(leastBytes = LEAST_SHARED_BYTES): SharedReads {
  const made = new Map<string, { readonly bytes: Uint8Array; takers: number }>();
  const acquireOne = (item: SharedItem, takers: number): SharedPiece => {
    const entry = made.get(item.key) ?? { bytes: privatePiece(item).bytes, takers };
    made.set(item.key, entry);
    return {
      bytes: entry.bytes,
      release() {
        if (--entry.takers === 0) made.delete(item.key);
      },
    };
  };
  return { leastBytes, acquire: (items, takers) => items.map((item) => acquireOne(item, takers)) };
}
