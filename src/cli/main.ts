#!/usr/bin/env node
import { run } from "./run.js";

// The process ends by itself when nothing is left running; all output is written by then.
process.exitCode = await run(process.argv.slice(2));
