/** The thread of a rank with faults begins here; `workerData.data` is its group's FaultSchedule. */
import { workerData } from "node:worker_threads";
import { createFaultyProgram } from "../src/rank/faulty-program.js";
import { exposeRank } from "../src/rank/rank-entry.js";

exposeRank(createFaultyProgram(workerData.data));
