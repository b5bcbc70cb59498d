import { destination, type Logger, type LoggerOptions, levels, pino } from "pino";
import { OptionError } from "./errors.js";

export type { Logger };

/** Levels that `--log-level` and SHARDLOOM_LOG_LEVEL accept. */
export const LOG_LEVELS: readonly string[] = [...Object.keys(levels.values), "silent"];

/**
 * A logger that writes JSON lines to stderr, synchronously, so that nothing is lost when a thread ends.
 * Throws OptionError `INVALID_LOG_LEVEL`.
 */
export function createLogger(
  level = process.env["SHARDLOOM_LOG_LEVEL"] ?? "warn",
  options: LoggerOptions = {},
): Logger {
  if (!LOG_LEVELS.includes(level)) {
    throw new OptionError(
      "INVALID_LOG_LEVEL",
      `expected a log level (${LOG_LEVELS.join(", ")}) but received ${JSON.stringify(level)}`,
      { option: "logLevel", expected: LOG_LEVELS.join("|"), received: level },
    );
  }
  return pino({ name: "shardloom", level, base: { pid: process.pid }, ...options }, destination({ fd: 2, sync: true }));
}
