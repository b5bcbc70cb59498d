import { createRequire } from "node:module";
import type { LoggerOptions } from "pino";
import { OptionError } from "./errors.js";

/** Writes members and a message, or a message alone, if its level is worth it. */
export interface Log {
  (details: object, message?: string): void;
  (message: string): void;
}

export interface Logger {
  readonly level: string;
  readonly debug: Log;
  readonly info: Log;
  readonly warn: Log;
  readonly error: Log;
}

/** Levels that `--log-level` and SHARDLOOM_LOG_LEVEL accept, in pino's order. */
export const LOG_LEVELS: readonly string[] = ["trace", "debug", "info", "warn", "error", "fatal", "silent"];

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
  // Loaded for the first line: most threads never write one, and each takes 17 ms of its start for it.
  let writer: Logger | undefined;
  const log = (name: "debug" | "info" | "warn" | "error"): Log => {
    if (LOG_LEVELS.indexOf(name) < LOG_LEVELS.indexOf(level)) return () => {};
    return (first: object | string, message?: string) => {
      writer ??= createWriter(level, options);
      if (typeof first === "string") writer[name](first);
      else writer[name](first, message);
    };
  };
  return { level, debug: log("debug"), info: log("info"), warn: log("warn"), error: log("error") };
}

function createWriter(level: string, options: LoggerOptions): Logger {
  const { destination, pino }: typeof import("pino") = createRequire(import.meta.url)("pino");
  return pino({ name: "shardloom", level, base: { pid: process.pid }, ...options }, destination({ fd: 2, sync: true }));
}
