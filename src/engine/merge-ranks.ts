/** The merges of a BPE tokenizer by rank, as @huggingface/tokenizers looks them up. */
import { type PackedStrings, packedString } from "../core/packed-strings.js";

/** A merge as tokenizer.json has it: both parts with a space between, or apart. */
export type Merge = string | readonly string[];

/**
 * Ranks by what the library asks for: the JSON of a pair. It would write that for every merge when a tokenizer is made; here
 * nothing happens until a text is cut, and then most merges are found by the string they came as.
 */
export class MergeRanks extends Map<string, number> {
  readonly #merges: readonly Merge[] | PackedStrings;
  /** Ranks of pairs without a space in them, by "left right". */
  readonly #plain = new Map<string, number>();
  /** Ranks of other pairs, by their JSON. */
  readonly #others = new Map<string, number>();
  #made = false;

  /** Packed merges are "left right" with no other space. */
  constructor(merges: readonly Merge[] | PackedStrings) {
    super();
    this.#merges = merges;
  }

  /** Rank of a pair, given as JSON: `["left","right"]`. */
  override get(json: string): number | undefined {
    if (!this.#made) this.#make();
    const plain = plainOfJson(json);
    return plain === null ? this.#others.get(json) : this.#plain.get(plain);
  }

  #make(): void {
    const merges = this.#merges;
    if ("ends" in merges) {
      for (let rank = 0; rank < merges.ends.length; rank++) this.#plain.set(packedString(merges, rank) ?? "", rank);
    } else for (const [rank, merge] of merges.entries()) this.#add(merge, rank);
    this.#made = true;
  }

  #add(merge: Merge, rank: number): void {
    const plain = plainOf(merge);
    if (plain !== null) this.#plain.set(plain, rank);
    else this.#others.set(JSON.stringify(typeof merge === "string" ? merge.split(" ", 2) : merge), rank);
  }
}

/** "left right", where that can be nothing else; null for other merges. */
function plainOf(merge: Merge): string | null {
  if (typeof merge === "string") {
    const space = merge.indexOf(" ");
    return space >= 0 && merge.indexOf(" ", space + 1) < 0 ? merge : null;
  }
  const [left, right] = merge;
  if (left === undefined || right === undefined || merge.length > 2) return null;
  return left.includes(" ") || right.includes(" ") ? null : `${left} ${right}`;
}

/** The same of the JSON of a pair. */
function plainOfJson(json: string): string | null {
  if (json.includes(" ")) return null;
  if (json.includes("\\")) return plainOf(JSON.parse(json));
  // Without a backslash, no part contains a quotation mark; the left one may be a comma.
  const middle = json.indexOf('","', 2);
  return `${json.slice(2, middle)} ${json.slice(middle + 3, -2)}`;
}
