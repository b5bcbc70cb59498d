/** What the entry file of a rank's thread does. The only place of this floor that knows of threads and ports. */
import { workerData } from "node:worker_threads";
import { expose } from "comlink";
import { createRankService, type RankProgram } from "./rank-server.js";
import type { RankWorkerData } from "./rank-service.js";

/** Exposes the service of a rank that runs `program` on the port that the coordinator gave this thread. */
export function exposeRank(program: RankProgram): void {
  // Stdout of the process is for results, and a rank has none: what a plugin prints goes where logs go. (The
  // coordinator could redirect it from outside, but a stream it reads would keep its process alive.)
  process.stdout.write = process.stderr.write.bind(process.stderr);
  const { control, plugins }: RankWorkerData = workerData;
  expose(createRankService(program), control);
  // While the rank waits to be told what to load. What fails here fails again when it loads them, and is reported then.
  for (const url of plugins) import(url).catch(() => {});
}
