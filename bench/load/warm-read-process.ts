/** A process that measures warm reads of a file and says so as JSON: the memory it takes is gone before anything else is measured. */
import { measureWarmRead, warm } from "./warm-read.js";

const [, , path = ""] = process.argv;
warm(path);
process.stdout.write(JSON.stringify(measureWarmRead(path)));
