import type { Interruption } from "./interruption.js";
import type { Output } from "./output.js";

/** What every command is given. */
export interface CommandContext {
  readonly stdout: Output;
  readonly interruption: Interruption;
  /** A line of information for the person at the terminal; never a result. */
  note(line: string): void;
  /** What the process is to exit with where the command ends well but has bad news; 0 unless it is called. */
  exitWith(code: number): void;
}
