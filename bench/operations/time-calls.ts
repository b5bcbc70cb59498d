/** Times calls that are too short to be timed alone. */

/**
 * Milliseconds of a call, from as many as last about `leastMs`. `call` hears the number of the call, by which it takes
 * one set of operands after the other.
 */
export function timeCalls(call: (index: number) => void, leastMs: number): number {
  let calls = 1;
  for (let index = 0; ; calls *= 2) {
    const start = performance.now();
    for (let i = 0; i < calls; i++) call(index++);
    const elapsed = performance.now() - start;
    if (elapsed >= leastMs) return elapsed / calls;
  }
}
