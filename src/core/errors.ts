/**
 * Errors: one base class with a stable `code` and fields a program can read. They cross threads as plain data
 * (`toTransferable`) and come back with class, code, fields and stack (`fromTransferable`).
 */
import { constants } from "node:os";

/** Fields that say what an error is about. Only those that apply are set. */
export interface ErrorDetails {
  readonly tensor?: string;
  readonly expected?: string | number;
  readonly received?: string | number;
  readonly rank?: number;
  readonly worldSize?: number;
  readonly file?: string;
  readonly layer?: string;
  readonly shardId?: string | number;
  readonly plugin?: string;
  readonly option?: string;
  readonly [field: string]: string | number | boolean | undefined;
}

/** What an error looks like between threads. */
export interface TransferableError {
  readonly shardloomError: true;
  readonly class: string;
  readonly code: string;
  readonly message: string;
  readonly details: ErrorDetails;
  readonly stack?: string;
}

/**
 * Base class of every error shardloom throws for a reason outside its own code. `code` is stable (see docs/errors.md),
 * `details` holds the values that the message names.
 */
export class ShardloomError extends Error {
  readonly code: string;
  readonly details: ErrorDetails;

  constructor(code: string, message: string, details: ErrorDetails = {}, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.details = details;
  }
}

/** A wrong option, flag, environment variable or request. */
export class OptionError extends ShardloomError {}
/** A checkpoint, config or tokenizer file that is missing, damaged or not what it claims to be. */
export class CheckpointError extends ShardloomError {}
/** A model or configuration feature that this version does not implement. */
export class UnsupportedError extends ShardloomError {}
/** A model that cannot be split into the requested ranks. */
export class PartitionError extends ShardloomError {}
/** A plugin that is missing, broken, or in conflict with another. */
export class PluginError extends ShardloomError {}
/** A collective that timed out, was aborted, or was called differently by two ranks. */
export class CollectiveError extends ShardloomError {}
/** A rank that died, hung or failed. */
export class RankError extends ShardloomError {}
/** A request that was cancelled or could not be served. */
export class RequestError extends ShardloomError {}
/** A broken invariant of shardloom itself: a bug. */
export class InternalError extends ShardloomError {
  constructor(message: string, details: ErrorDetails = {}, options?: ErrorOptions) {
    super("INTERNAL", message, details, options);
  }
}

type ErrorClass = new (code: string, message: string, details?: ErrorDetails) => ShardloomError;
const classes: ReadonlyMap<string, ErrorClass> = new Map<string, ErrorClass>([
  ["ShardloomError", ShardloomError],
  ["OptionError", OptionError],
  ["CheckpointError", CheckpointError],
  ["UnsupportedError", UnsupportedError],
  ["PartitionError", PartitionError],
  ["PluginError", PluginError],
  ["CollectiveError", CollectiveError],
  ["RankError", RankError],
  ["RequestError", RequestError],
]);

/** Throws InternalError unless `condition` holds. For our own invariants, never for user input. */
export function invariant(condition: unknown, message: string, details?: ErrorDetails): asserts condition {
  if (!condition) throw new InternalError(message, details);
}

/** The nearest of our classes: a plugin may throw a subclass of its own, which the other thread does not know. */
function classOf(error: ShardloomError): string {
  if (error instanceof InternalError) return "InternalError";
  let nearest = "ShardloomError";
  for (const [name, Class] of classes) if (error instanceof Class) nearest = name;
  return nearest;
}

/** Only what structured clone can carry, whatever a plugin put there: an error that cannot be sent would be lost. */
function plainDetails(details: ErrorDetails): ErrorDetails {
  const plain = ["string", "number", "boolean"];
  return Object.fromEntries(Object.entries(details).filter(([, value]) => plain.includes(typeof value)));
}

/** The plain data that carries any thrown value to another thread. */
export function toTransferable(error: unknown): TransferableError {
  if (error instanceof ShardloomError) {
    return {
      shardloomError: true,
      class: classOf(error),
      code: error.code,
      message: error.message,
      details: plainDetails(error.details),
      ...(error.stack === undefined ? {} : { stack: error.stack }),
    };
  }
  const message = reasonOf(error);
  const stack = error instanceof Error ? error.stack : undefined;
  const base = { shardloomError: true, class: "InternalError", code: "INTERNAL", message, details: {} } as const;
  return stack === undefined ? base : { ...base, stack };
}

/** The error that `toTransferable` packed, with its class, code, fields and original stack. */
export function fromTransferable(data: TransferableError): ShardloomError {
  const Class = classes.get(data.class);
  const error =
    Class === undefined
      ? new InternalError(data.message, data.details)
      : new Class(data.code, data.message, data.details);
  if (data.stack !== undefined) error.stack = data.stack;
  return error;
}

/** The error with `rank` in its details, same class, code, message and stack; as it is if it names a rank already. */
export function withRank(error: unknown, rank: number): unknown {
  if (error instanceof ShardloomError && error.details.rank !== undefined) return error;
  const data = toTransferable(error);
  const named = fromTransferable({ ...data, details: { ...data.details, rank } });
  named.cause = error instanceof ShardloomError ? error.cause : error;
  return named;
}

/** An error of the system. Not NodeJS.ErrnoException: plugins are compiled against this file, and need not have the types of Node.js. */
export interface SystemError extends Error {
  readonly code?: string;
  readonly errno?: number;
  readonly syscall?: string;
}

/** Whether an error is one of the system's, with its code: ENOENT, EIO, .. */
export function isErrnoException(error: unknown): error is SystemError {
  return error instanceof Error && "code" in error;
}

/** The message of what was thrown; of the system's errors also where Node knows no name of them, such as ESTALE. */
export function reasonOf(cause: unknown): string {
  const reason = cause instanceof Error ? cause.message : String(cause);
  if (!isErrnoException(cause) || cause.errno === undefined || !reason.startsWith("Unknown system error"))
    return reason;
  const number = Math.abs(cause.errno);
  const [name] = Object.entries(constants.errno).find(([, errno]) => errno === number) ?? [];
  return name === undefined ? reason : `${name}, ${cause.syscall ?? "a call"} failed`;
}

/** The error of a file or directory that the system does not let us read: `FILE_NOT_FOUND`, or `READ_FAILED` for other reasons. */
export function cannotRead(file: string, cause: unknown): CheckpointError {
  const reason = reasonOf(cause);
  const isMissing = !isErrnoException(cause) || cause.code === "ENOENT" || cause.code === "ENOTDIR";
  const code = isMissing ? "FILE_NOT_FOUND" : "READ_FAILED";
  return new CheckpointError(code, `cannot read ${file}: ${reason}`, { file, reason }, { cause });
}

/** True if a value received from another thread is a packed error. */
export function isTransferableError(value: unknown): value is TransferableError {
  return typeof value === "object" && value !== null && "shardloomError" in value && value.shardloomError === true;
}

/** A value as an error message shows it: `"text" of type string`, `null`, `3 of type number`. */
export function describeValue(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value === "string") return `${JSON.stringify(value)} of type string`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object") return "an object";
  return `${String(value)} of type ${typeof value}`;
}
