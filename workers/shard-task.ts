/** The thread of a shard task begins here. */
import { workerData } from "node:worker_threads";
import { createShardTaskRunner } from "../src/rank/shard-task.js";

// Stdout of the process is for results: what a plugin prints goes where logs go.
process.stdout.write = process.stderr.write.bind(process.stderr);

export const runShardTask = createShardTaskRunner(workerData);
