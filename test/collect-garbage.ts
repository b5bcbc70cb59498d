/**
 * A root hook of mocha (.mocharc.json): collects garbage when tests have left a lot of shared memory behind. What simulated
 * ranks allocate is let go when they are closed, but V8 does not count shared memory towards its next collection, so that
 * the whole suite held up to 9 GB.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const LIMIT_BYTES = 2 ** 29;

setFlagsFromString("--expose-gc");
const collect: () => void = runInNewContext("gc");

/** For tests that go through many groups of ranks. */
export function collectGarbage(): void {
  if (process.memoryUsage().arrayBuffers > LIMIT_BYTES) collect();
}

export const mochaHooks = { afterEach: collectGarbage };
