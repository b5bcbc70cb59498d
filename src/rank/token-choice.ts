/**
 * Choosing a token from one row of logits: greedy, or drawn from a distribution that temperature, min-p, top-k and top-p
 * have shaped, in vLLM's order. Pure arithmetic on typed arrays; the draw depends on the seed and the index of the token
 * alone, so it is the same at any world size and in any batch.
 */

/** How a token is drawn. */
export interface DrawSettings {
  /** Above 0. */
  readonly temperature: number;
  /** Keep the k largest logits, and any equal to the smallest of them; 0 keeps all. */
  readonly topK: number;
  /** Keep the smallest set of likeliest tokens whose probabilities reach this sum; 1 keeps all. */
  readonly topP: number;
  /** Keep tokens at least this fraction as likely as the likeliest; 0 keeps all. */
  readonly minP: number;
  readonly seed: number;
  /** Which token of the sequence is drawn. */
  readonly index: number;
}

/** What a row of logits holds, as far as choosing needs it. */
export interface RowSummary {
  /** Largest logit; not finite if no logit is a number, or one is infinite. */
  readonly max: number;
  /** Lowest id that has it. */
  readonly maxId: number;
  /** Natural logarithm of the sum of exponentials, in f64. */
  readonly logSumExp: number;
}

/** Scans a row of logits. A NaN anywhere makes `max` NaN. */
export function summarize(logits: Float32Array): RowSummary {
  let max = Number.NEGATIVE_INFINITY;
  let maxId = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] ?? Number.NaN;
    if (logit > max) {
      max = logit;
      maxId = id;
    } else if (Number.isNaN(logit)) return { max: Number.NaN, maxId: 0, logSumExp: Number.NaN };
  }
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  return { max, maxId, logSumExp: max + Math.log(sum) };
}

/** A number in [0, 1) that depends on seed and index only: two rounds of a 32-bit finalizer (MurmurHash3), 53 bits. */
export function uniform(seed: number, index: number): number {
  const high = mix(mix(seed ^ 0x9e3779b9) + Math.imul(index, 0x85ebca6b));
  const low = mix(high ^ Math.imul(index + 1, 0xc2b2ae35) ^ seed);
  return ((high >>> 0) * 2 ** 21 + (low >>> 11)) / 2 ** 53;
}

function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

/** Draws tokens; owns the scratch memory for one vocabulary. */
export class TokenDrawer {
  readonly #sorted: Float32Array;

  constructor(vocabularySize: number) {
    this.#sorted = new Float32Array(vocabularySize);
  }

  /** Draws the id of a token. The row must have passed `summarize` with a finite maximum. */
  draw(logits: Float32Array, summary: RowSummary, settings: DrawSettings): number {
    const { temperature } = settings;
    const threshold = this.#threshold(logits, summary, settings);
    let total = 0;
    for (const logit of logits) if (logit >= threshold) total += Math.exp((logit - summary.max) / temperature);
    let rest = uniform(settings.seed, settings.index) * total;
    let last = summary.maxId;
    for (let id = 0; id < logits.length; id++) {
      const logit = logits[id] ?? Number.NEGATIVE_INFINITY;
      if (logit < threshold) continue;
      rest -= Math.exp((logit - summary.max) / temperature);
      last = id;
      if (rest < 0) break;
    }
    return last;
  }

  /** The smallest logit that may be drawn. */
  #threshold(logits: Float32Array, { max }: RowSummary, { temperature, topK, topP, minP }: DrawSettings): number {
    const floor = minP > 0 ? max + temperature * Math.log(minP) : Number.NEGATIVE_INFINITY;
    const limited = topK > 0 && topK < logits.length;
    if (!limited && topP >= 1) return floor;
    const sorted = this.#sorted.subarray(0, logits.length);
    sorted.set(logits);
    sorted.sort();
    const largest = (rank: number): number => sorted[sorted.length - 1 - rank] ?? Number.NEGATIVE_INFINITY;
    const threshold = limited ? Math.max(floor, largest(topK - 1)) : floor;
    if (topP >= 1) return threshold;
    let total = 0;
    let kept = 0;
    for (; kept < sorted.length && largest(kept) >= threshold; kept++)
      total += Math.exp((largest(kept) - max) / temperature);
    let sum = 0;
    for (let rank = 0; rank < kept; rank++) {
      sum += Math.exp((largest(rank) - max) / temperature);
      if (sum >= topP * total) return largest(rank);
    }
    return threshold;
  }
}

/** Writes the ids and logits of the `count` largest logits, largest first, lowest id first among equals. */
export function largestLogits(logits: Float32Array, count: number, ids: Int32Array, values: Float32Array): void {
  let filled = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] ?? Number.NEGATIVE_INFINITY;
    if (filled === count && !(logit > (values[count - 1] ?? Number.POSITIVE_INFINITY))) continue;
    let place = filled < count ? filled++ : count - 1;
    for (; place > 0 && logit > (values[place - 1] ?? Number.POSITIVE_INFINITY); place--) {
      values[place] = values[place - 1] ?? 0;
      ids[place] = ids[place - 1] ?? 0;
    }
    values[place] = logit;
    ids[place] = id;
  }
}
