/** A thread with helpers: says so, then returns or waits for its end. */
import { parentPort, workerData } from "node:worker_threads";
import { loadedAddon } from "./tensors.js";

const { threads, end }: { threads: number; end: "return" | "terminate" } = workerData;
loadedAddon().setThreads(threads, 0, 0);
parentPort?.postMessage("ready");
// With a limit, so that a test that fails does not hang.
if (end === "terminate") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60_000);
