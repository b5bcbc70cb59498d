/** One run of the command line, from its arguments to its exit code. */
import type { CommandContext } from "./context.js";
import { EXIT_OK } from "./exit-codes.js";
import { Interruption } from "./interruption.js";
import { Output } from "./output.js";
import { createProgram } from "./program.js";
import { reportError } from "./report-error.js";

/** Runs a command line and returns what the process is to exit with, once everything it opened is closed. */
export async function run(args: readonly string[]): Promise<number> {
  const interruption = new Interruption();
  const stdout = new Output(process.stdout, () => interruption.outputClosed());
  // Nobody is left to tell when stderr is gone.
  process.stderr.on("error", () => {});
  let outcome: number = EXIT_OK;
  const context: CommandContext = {
    stdout,
    interruption,
    note: (line) => process.stderr.write(`${line}\n`),
    exitWith: (code) => {
      outcome = code;
    },
  };
  interruption.listen();
  try {
    await createProgram(context).parseAsync(args, { from: "user" });
    return interruption.exitCode ?? outcome;
  } catch (error) {
    // What was interrupted complains of nothing else.
    if (interruption.exitCode !== null) return interruption.exitCode;
    await stdout.endLine().catch(() => {});
    const { exitCode, text } = reportError(error, args.includes("--verbose"));
    process.stderr.write(text);
    return exitCode;
  } finally {
    interruption.release();
  }
}
