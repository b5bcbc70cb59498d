/** Ids of the tokens of a packed vocabulary. */
import { type PackedStrings, packedString } from "../core/packed-strings.js";

/** FNV-1a over UTF-16 units. */
const OFFSET_BASIS = 0x811c9dc5;
const PRIME = 0x01000193;

/**
 * Taken slots that are passed for a token, on average, before the table is given up. It is never more than half full, and a
 * vocabulary passes fewer than one; but tokens can be chosen to have the same hash, and would take time that grows with their
 * square.
 */
const MAX_PASSED = 16;

/**
 * Ids by tokens, as the Map that @huggingface/tokenizers wants of a model, which may add tokens. Of the packed tokens there is
 * only a hash table of their ids, with open addressing: it is made in a fraction of the time that a Map of as many strings takes.
 */
export class PackedTokenIds extends Map<string, number> {
  readonly #tokens: PackedStrings;
  readonly #hashes: Int32Array;
  /** An id and one in each slot that is taken; 0 in others. */
  readonly #slots: Int32Array;
  readonly #mask: number;
  #crowded = false;
  /** Two ids of one token; null where all tokens differ. The table ends there. */
  readonly twice: readonly [number, number] | null;

  constructor(tokens: PackedStrings) {
    super();
    const { length } = tokens.ends;
    this.#tokens = tokens;
    this.#hashes = new Int32Array(length);
    this.#slots = new Int32Array(2 ** Math.ceil(Math.log2(2 * length + 1)));
    this.#mask = this.#slots.length - 1;
    this.twice = this.#insertAll();
  }

  /** Whether tokens were chosen to have the same hash: the table has not all of them. */
  get crowded(): boolean {
    return this.#crowded;
  }

  override get(token: string): number | undefined {
    return this.#find(token) ?? super.get(token);
  }

  override has(token: string): boolean {
    return this.get(token) !== undefined;
  }

  /** Adds a token. One that is packed keeps its id. */
  override set(token: string, id: number): this {
    return this.#find(token) === undefined ? super.set(token, id) : this;
  }

  #insertAll(): readonly [number, number] | null {
    const { text, ends } = this.#tokens;
    const slots = this.#slots;
    let left = MAX_PASSED * ends.length;
    for (let id = 0, start = 0; id < ends.length; id++) {
      const end = ends[id] ?? start;
      const hash = hashOf(text, start, end);
      this.#hashes[id] = hash;
      let slot = hash & this.#mask;
      for (let other = slots[slot] ?? 0; other !== 0; other = slots[slot] ?? 0) {
        if (this.#hashes[other - 1] === hash && this.#equals(other - 1, text.slice(start, end))) return [other - 1, id];
        this.#crowded = left-- === 0;
        if (this.#crowded) return null;
        slot = (slot + 1) & this.#mask;
      }
      slots[slot] = id + 1;
      start = end;
    }
    return null;
  }

  #find(token: string): number | undefined {
    const hash = hashOf(token, 0, token.length);
    let slot = hash & this.#mask;
    for (let taken = this.#slots[slot] ?? 0; taken !== 0; taken = this.#slots[slot] ?? 0) {
      if (this.#hashes[taken - 1] === hash && this.#equals(taken - 1, token)) return taken - 1;
      slot = (slot + 1) & this.#mask;
    }
    return undefined;
  }

  #equals(id: number, token: string): boolean {
    return packedString(this.#tokens, id) === token;
  }
}

function hashOf(text: string, start: number, end: number): number {
  let hash = OFFSET_BASIS;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ text.charCodeAt(i), PRIME);
  // The low bits, which choose a slot, know little of the last units.
  return hash ^ (hash >>> 15);
}
