/** The thread of a checkpoint task begins here. */
import { workerData } from "node:worker_threads";
import { createCheckpointTaskRunner } from "../src/loading/checkpoint-task.js";

// Stdout of the process is for results: what a plugin prints goes where logs go.
process.stdout.write = process.stderr.write.bind(process.stderr);

export const runCheckpointTask = createCheckpointTaskRunner(workerData);
