/** Load profiles from files, which may hold anything: as much of them as two profiles are compared by. */
import { readFileSync, statSync } from "node:fs";
import { CheckpointError, cannotRead, describeValue, OptionError, reasonOf } from "../core/errors.js";
import { isJsonObject, type JsonObject, type JsonValue, readTextFile } from "../core/json.js";
import { LOAD_PHASES, type LoadPhase, type LoadProfile } from "../index.js";
import type { ComparableProfile, ComparableRank, ComparableSpan } from "./profile-comparison.js";

const FORMAT: LoadProfile["format"] = "shardloom-load-profile";
const VERSION: LoadProfile["version"] = 1;

/** Throws OptionError `INVALID_PROFILE`, naming the file and the member that is not as docs/load-profile.schema.json has it. */
export function readProfile(file: string): ComparableProfile {
  const profile = objectAt(parse(file), file, "the file");
  const [format, version] = [profile["format"], profile["version"]];
  if (format !== FORMAT || version !== VERSION) {
    const received = `format ${describeValue(format)}, version ${describeValue(version)}`;
    throw invalid(file, `a load profile of version ${VERSION}`, received);
  }
  const subject = objectAt(profile["subject"], file, "subject");
  const ranks = arrayAt(profile["ranks"], file, "ranks");
  return {
    model: textAt(subject["model"], file, "subject.model"),
    startedAt: textAt(profile["startedAt"], file, "startedAt"),
    totalNs: countAt(profile["totalNs"], file, "totalNs"),
    bytesRead: countAt(profile["bytesRead"], file, "bytesRead"),
    ranks: ranks.map((rank, i) => rankAt(rank, file, `ranks[${i}]`)),
  };
}

function rankAt(value: JsonValue, file: string, at: string): ComparableRank {
  const rank = objectAt(value, file, at);
  const phases = objectAt(rank["phases"], file, `${at}.phases`);
  const totals = LOAD_PHASES.map((phase) => {
    const member = `${at}.phases.${phase}`;
    const each = objectAt(phases[phase], file, member);
    const selfNs = countAt(each["selfNs"], file, `${member}.selfNs`);
    return [phase, { selfNs, bytes: countAt(each["bytes"], file, `${member}.bytes`) }] as const;
  });
  return {
    rank: countAt(rank["rank"], file, `${at}.rank`),
    busyNs: countAt(rank["busyNs"], file, `${at}.busyNs`),
    phases: new Map(totals),
    spans: arrayAt(rank["spans"], file, `${at}.spans`).map((span, i) => spanAt(span, file, `${at}.spans[${i}]`)),
  };
}

function spanAt(value: JsonValue, file: string, at: string): ComparableSpan {
  const span = objectAt(value, file, at);
  return {
    name: textAt(span["name"], file, `${at}.name`),
    phase: phaseAt(span["phase"], file, `${at}.phase`),
    durationNs: countAt(span["durationNs"], file, `${at}.durationNs`),
  };
}

function parse(file: string): unknown {
  const text = textOf(file);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw invalid(file, "a load profile in JSON", reasonOf(error));
  }
}

/** A file, or a pipe, as shells name what another command prints. Not a device, which may never end. */
function textOf(file: string): string {
  try {
    const isPipe = statSync(file, { throwIfNoEntry: false })?.isFIFO() === true;
    return isPipe ? readFileSync(file, "utf8") : readTextFile(file);
  } catch (error) {
    // It is read as files of models are, and is none.
    const { message, details } = error instanceof CheckpointError ? error : cannotRead(file, error);
    throw new OptionError("INVALID_PROFILE", message, details, { cause: error });
  }
}

function objectAt(value: unknown, file: string, at: string): JsonObject {
  if (isJsonObject(value)) return value;
  throw invalid(file, `an object at ${at}`, describeValue(value));
}

function arrayAt(value: JsonValue | undefined, file: string, at: string): readonly JsonValue[] {
  if (Array.isArray(value)) return value;
  throw invalid(file, `an array at ${at}`, describeValue(value));
}

function textAt(value: JsonValue | undefined, file: string, at: string): string {
  if (typeof value === "string") return value;
  throw invalid(file, `a string at ${at}`, describeValue(value));
}

function countAt(value: JsonValue | undefined, file: string, at: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw invalid(file, `a whole number at ${at}`, describeValue(value));
}

function phaseAt(value: JsonValue | undefined, file: string, at: string): LoadPhase {
  const phase = LOAD_PHASES.find((each) => each === value);
  if (phase !== undefined) return phase;
  throw invalid(file, `one of ${LOAD_PHASES.join(", ")} at ${at}`, describeValue(value));
}

function invalid(file: string, expected: string, received: string): OptionError {
  return new OptionError("INVALID_PROFILE", `${file}: expected ${expected} but received ${received}`, {
    file,
    expected,
    received,
  });
}
