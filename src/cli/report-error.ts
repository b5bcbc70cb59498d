/** What a person reads when a command fails: one line with a stable code, and a stack trace only if asked for. */
import { inspect } from "node:util";
import { CommanderError } from "commander";
import { reasonOf, ShardloomError } from "../core/errors.js";
import { EXIT_OK, EXIT_USAGE, exitCodeOf } from "./exit-codes.js";
import { oneLine, printable } from "./terminal-text.js";

/** Options of the API whose names differ from the flags that set them. */
const FLAGS: ReadonlyMap<string, string> = new Map([
  ["tensorParallelSize", "--tp"],
  ["threadsPerRank", "--threads-per-rank"],
  ["pinning", "--no-pinning"],
  ["maxModelLength", "--max-model-len"],
  ["activations", "--activations"],
  ["kvCacheBytes", "--kv-cache-bytes"],
  ["kvCacheDtype", "--kv-cache-dtype"],
  ["collectivePayload", "--collective-payload"],
  ["loadFormat", "--load-format"],
  ["logLevel", "--log-level"],
  ["memoryBytes", "--memory-bytes"],
  ["maxSequences", "--batch"],
  ["quantization", "--quantization"],
  ["promptTokenIds", "--prompt-ids"],
  ["tokenIds", "--token-ids"],
  ["stopTokenIds", "--stop-token-ids"],
]);

/** What is to be printed, and what the process is to exit with. */
export interface ErrorReport {
  readonly exitCode: number;
  /** Lines for stderr; none where commander has printed what was asked for. */
  readonly text: string;
}

/** `verbose` adds the stack trace, with that of every cause. */
export function reportError(error: unknown, verbose: boolean): ErrorReport {
  if (error instanceof CommanderError) return reportUsage(error);
  const exitCode = exitCodeOf(error);
  const code = error instanceof ShardloomError ? error.code : "INTERNAL";
  const line = lineOf(code, messageOf(error));
  return { exitCode, text: verbose ? `${line}${printable(inspect(error))}\n` : line };
}

/** A finding about options of the API, in terms of the flags that set them. Only names that can be no ordinary word. */
export function inFlags(message: string): string {
  return message.replace(/\b[a-z]+[A-Z]\w*/g, (name) => FLAGS.get(name) ?? name);
}

/** The line of `reportError` alone. */
export function errorLine(error: unknown): string {
  return reportError(error, false).text;
}

/** Commander has printed help and version itself, and nothing else (see program.ts). */
function reportUsage({ code, exitCode, message }: CommanderError): ErrorReport {
  if (exitCode === 0) return { exitCode: EXIT_OK, text: "" };
  if (code === "commander.help") return { exitCode: EXIT_USAGE, text: "" };
  return { exitCode: EXIT_USAGE, text: lineOf("INVALID_USAGE", oneLine(message.replace(/^error: /, ""))) };
}

function lineOf(code: string, message: string): string {
  return `shardloom: error[${code}]: ${message}\n`;
}

function messageOf(error: unknown): string {
  const message = reasonOf(error);
  if (!(error instanceof ShardloomError) || error.details.option === undefined) return oneLine(message);
  const option = error.details.option.replace(/\[\d+\]$/, "");
  const flag = FLAGS.get(option);
  return oneLine(flag === undefined ? message : message.replaceAll(option, flag));
}
