/**
 * Who asked, told to the other ranks once they have found out that they ask for different things. It costs nothing before:
 * when ranks compare requests all of them have arrived and none reads payload any more, so that each may leave the name
 * of its module in a slot of its own.
 */
import { type CollectiveRegion, RANK_LINE, rankLine, slotOf, wordsOf } from "./region.js";

/** How long a rank waits for another one's name. All have arrived, so only a rank that died since takes that long. */
const PATIENCE_MS = 250;

/** Leaves the site of this rank's request where `siteOf` finds it. Only after a mismatch, by the rank itself. */
export function publishSite(region: CollectiveRegion, rank: number, site: string): void {
  const bytes = bytesOfSlot(region, rank);
  const { written } = new TextEncoder().encodeInto(site, bytes);
  const words = wordsOf(region);
  const at = rankLine(rank) + RANK_LINE.siteBytes;
  Atomics.store(words, at, written + 1);
  Atomics.notify(words, at);
}

/** What another rank published; empty if it has none to name, or did not answer in time. */
export function siteOf(region: CollectiveRegion, rank: number): string {
  const words = wordsOf(region);
  const at = rankLine(rank) + RANK_LINE.siteBytes;
  Atomics.wait(words, at, 0, PATIENCE_MS);
  const length = Atomics.load(words, at) - 1;
  // A copy: the decoder takes no shared memory.
  return length <= 0 ? "" : new TextDecoder().decode(bytesOfSlot(region, rank).slice(0, length));
}

/** Of a private copy's size at least: a slot has 128 bytes or more. */
function bytesOfSlot(region: CollectiveRegion, rank: number): Uint8Array {
  const { buffer, byteOffset, byteLength } = slotOf(region, rank, 0);
  return new Uint8Array(buffer, byteOffset, byteLength);
}
