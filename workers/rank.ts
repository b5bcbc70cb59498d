/** The thread of a rank begins here. */
import { modelProgram } from "../src/rank/model-program.js";
import { exposeRank } from "../src/rank/rank-entry.js";

exposeRank(modelProgram);
