/**
 * Faults as plain data: what goes wrong on which rank, and when. One description for ranks that take turns in one thread
 * and for ranks in worker threads. Applying it is rank-faults.ts; production knows neither.
 */
import { describeValue, OptionError } from "../core/errors.js";

/** In a step, when the rank is about to take part in a collective. */
export interface AtCollective {
  readonly rank: number;
  /** Which of the rank's collectives, from 1, counted through all steps since it was loaded. */
  readonly collective: number;
}

/** While the rank loads. */
export interface AtTensor {
  readonly rank: number;
  /**
   * A tensor of the checkpoint, by its name or its place in the order of the files, from 1; the fault happens when the rank
   * first reads some of it. For `outOfMemory`: a tensor that the rank allocates, by its name or its place in that order.
   */
  readonly tensor: string | number;
}

/** What can go wrong anywhere. */
export type FaultAnywhere =
  /** The rank throws RankError `INJECTED_FAULT`. */
  | { readonly kind: "throw" }
  /** The rank is late. */
  | { readonly kind: "delay"; readonly delayMs: number }
  /** The rank never goes on. */
  | { readonly kind: "hang" }
  /** The rank's thread ends. Default exit code 1. */
  | { readonly kind: "exit"; readonly exitCode?: number }
  /** An allocation is refused (tensor), or the thread's heap is full (collective). */
  | { readonly kind: "outOfMemory" };

/** What becomes of an element: NaN (0x7fc00000 in an i32), or its most significant bit is flipped. */
export type CorruptValue = "nan" | "flipped";

/** One element is not what it should be. */
export interface CorruptPayload {
  readonly kind: "corrupt";
  /** What the rank contributes, so that all ranks get the same wrong result; or what it alone gets. */
  readonly payload: "sent" | "received";
  /** Index in the payload, counted around it. Default 0. */
  readonly element?: number;
  /** Default "nan". */
  readonly value?: CorruptValue;
}

/** The first element that the rank reads of the tensor is not what it should be; NaN only in floating-point tensors. */
export interface CorruptTensor {
  readonly kind: "corrupt";
  /** Default "nan". */
  readonly value?: CorruptValue;
}

/** The file ends in the middle of what the rank reads. */
export interface ShortRead {
  readonly kind: "shortRead";
}

export type CollectiveFault = AtCollective & (FaultAnywhere | CorruptPayload);
export type TensorFault = AtTensor & (FaultAnywhere | CorruptTensor | ShortRead);
export type Fault = CollectiveFault | TensorFault;

/** Faults of one run. Several at one place happen in their order; each happens once. */
export type FaultSchedule = readonly Fault[];

export function isCollectiveFault(fault: Fault): fault is CollectiveFault {
  return "collective" in fault;
}

/** `rank 1, collective 7: corrupt (received, element 3, flipped)` */
export function describeFault(fault: Fault): string {
  const place = isCollectiveFault(fault) ? `collective ${fault.collective}` : `tensor ${fault.tensor}`;
  return `rank ${fault.rank}, ${place}: ${describeKind(fault)}`;
}

function describeKind(fault: Fault): string {
  switch (fault.kind) {
    case "delay":
      return `delay of ${fault.delayMs} ms`;
    case "exit":
      return `exit with ${fault.exitCode ?? 1}`;
    case "corrupt": {
      const { value = "nan" } = fault;
      return "payload" in fault
        ? `corrupt (${fault.payload}, element ${fault.element ?? 0}, ${value})`
        : `corrupt (${value})`;
    }
    default:
      return fault.kind;
  }
}

type Fields = Readonly<Record<string, unknown>>;

const ANYWHERE = "throw, delay, hang, exit, outOfMemory, corrupt";

/**
 * Checks a schedule for `worldSize` ranks that may come from plain JavaScript. Throws OptionError `INVALID_OPTION` naming the
 * fault and its field.
 */
export function checkFaults(faults: unknown, worldSize: number): FaultSchedule {
  if (!Array.isArray(faults)) throw invalid("faults", "an array of faults", faults);
  return faults.map((fault, i) => checkFault(fault, `faults[${i}]`, worldSize));
}

function checkFault(fault: unknown, at: string, worldSize: number): Fault {
  if (typeof fault !== "object" || fault === null) throw invalid(at, "a fault", fault);
  const fields: Fields = { ...fault };
  const { rank, collective, tensor } = fields;
  if (!isIndex(rank, 0, worldSize)) throw invalid(`${at}.rank`, `a rank below ${worldSize}`, rank);
  if ((collective === undefined) === (tensor === undefined)) {
    throw invalid(at, "one of collective and tensor", collective === undefined ? "neither" : "both");
  }
  if (collective !== undefined) {
    if (!isIndex(collective, 1)) throw invalid(`${at}.collective`, "a number from 1", collective);
    return { rank, collective, ...checkCollectiveKind(fields, at) };
  }
  if (isIndex(tensor, 1) || (typeof tensor === "string" && tensor !== "")) {
    return { rank, tensor, ...checkTensorKind(fields, at) };
  }
  throw invalid(`${at}.tensor`, "a name or a number from 1", tensor);
}

function checkCollectiveKind(fields: Fields, at: string): FaultAnywhere | CorruptPayload {
  const { kind, payload, element = 0 } = fields;
  if (kind !== "corrupt") return checkAnywhere(fields, at, ANYWHERE);
  if (payload !== "sent" && payload !== "received") throw invalid(`${at}.payload`, "sent or received", payload);
  if (!isIndex(element, 0)) throw invalid(`${at}.element`, "an index", element);
  return { kind, payload, element, value: checkValue(fields, at) };
}

function checkTensorKind(fields: Fields, at: string): FaultAnywhere | CorruptTensor | ShortRead {
  const { kind } = fields;
  if (kind === "corrupt") return { kind, value: checkValue(fields, at) };
  if (kind === "shortRead") return { kind };
  return checkAnywhere(fields, at, `${ANYWHERE}, shortRead`);
}

function checkAnywhere({ kind, delayMs, exitCode = 1 }: Fields, at: string, expected: string): FaultAnywhere {
  switch (kind) {
    case "throw":
    case "hang":
    case "outOfMemory":
      return { kind };
    case "delay":
      if (!isIndex(delayMs, 0)) throw invalid(`${at}.delayMs`, "a whole number of milliseconds", delayMs);
      return { kind, delayMs };
    case "exit":
      if (!isIndex(exitCode, 0, 256)) throw invalid(`${at}.exitCode`, "a number from 0 to 255", exitCode);
      return { kind, exitCode };
    default:
      throw invalid(`${at}.kind`, `one of ${expected}`, kind);
  }
}

function checkValue({ value = "nan" }: Fields, at: string): CorruptValue {
  if (value === "nan" || value === "flipped") return value;
  throw invalid(`${at}.value`, "nan or flipped", value);
}

function isIndex(value: unknown, first: number, end = Number.POSITIVE_INFINITY): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= first && value < end;
}

function invalid(option: string, expected: string, received: unknown): OptionError {
  return new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be ${expected} but received ${describeValue(received)}`,
    {
      option,
      expected,
      received: String(received),
    },
  );
}
