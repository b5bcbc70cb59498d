/** Exit codes of the command line; docs/errors.md says the same to its readers. */
import {
  CheckpointError,
  InternalError,
  OptionError,
  PartitionError,
  PluginError,
  RequestError,
  ShardloomError,
  UnsupportedError,
} from "../core/errors.js";

export const EXIT_OK = 0;
/** A bug in shardloom. */
export const EXIT_INTERNAL = 1;
/** The command line, an environment variable or the request is wrong. */
export const EXIT_USAGE = 2;
/** The model is missing, damaged, not supported, or cannot be split that far. */
export const EXIT_MODEL = 3;
/** A plugin is missing, broken, or in conflict with another one. */
export const EXIT_PLUGIN = 4;
/** A rank or a collective failed, memory ran out, or results could not be written. */
export const EXIT_RUNTIME = 5;

/** What was measured exceeds a limit that the command line sets. */
export const EXIT_LIMIT = 6;

/** Signals a command ends on, and the exit codes that shells know for them. */
export const SIGNAL_EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/** The exit code that tells a script what kind of error it was. */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof ShardloomError) || error instanceof InternalError) return EXIT_INTERNAL;
  if (error instanceof OptionError || error instanceof RequestError) return EXIT_USAGE;
  if (error instanceof CheckpointError || error instanceof UnsupportedError) return EXIT_MODEL;
  if (error instanceof PartitionError) return EXIT_MODEL;
  if (error.code === "LOAD_SKEW") return EXIT_LIMIT;
  if (error instanceof PluginError) return EXIT_PLUGIN;
  return EXIT_RUNTIME;
}
