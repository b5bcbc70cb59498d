/**
 * What goes wrong in a rank of fake-rank.ts, and when. Those ranks have no model, and so neither tensors nor layers that
 * faults of src/rank/faults.ts could name; what these faults have in common with those they do the same way.
 */
export interface Fault {
  readonly rank: number;
  /** While it loads, or in the step with that number, counted from 1. */
  readonly at: "load" | number;
  readonly what:
    | "throw" // a typed error with fields, from a subclass of a plugin's own
    | "throw-plain" // an Error that is none of ours
    | "exit" // process.exit(7)
    | "uncaught" // an exception that nobody catches
    | "exhaust" // more memory than the thread may have
    | "hang" // an endless loop
    | "another-file" // it loads what took the place of a file that the others opened
    | "stuck"; // native code that returns much later
}

/** Index in `resultIds` that becomes 1 when a fault in a step is about to happen. */
export const FAULT_REACHED = 1;
