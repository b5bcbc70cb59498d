/**
 * A root hook of mocha (.mocharc.json): collects garbage when tests have left a lot of shared memory behind. What simulated
 * ranks allocate is let go when they are closed, but V8 does not count shared memory towards its next collection, so that
 * the whole suite held up to 9 GB.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** How much may come to what the last collection left. */
const GROWTH_BYTES = 2 ** 29;

setFlagsFromString("--expose-gc");
const collect: () => void = runInNewContext("gc");
/** What tests still hold: to collect for it would only take time. */
let heldBytes = 0;

/** For tests that go through many groups of ranks. */
export function collectGarbage(): void {
  const { arrayBuffers } = process.memoryUsage();
  heldBytes = Math.min(heldBytes, arrayBuffers);
  if (arrayBuffers < heldBytes + GROWTH_BYTES) return;
  collect();
  heldBytes = process.memoryUsage().arrayBuffers;
}

export const mochaHooks = { afterEach: collectGarbage };
