/**
 * What a rank recorded of its loading, as it sends it: its spans lie in one array of numbers. Hundreds of objects would take
 * milliseconds to make, to send and to receive while the model is not ready yet, in code that runs once.
 */
import { InternalError } from "../core/errors.js";
import { eachPhase, LOAD_PHASES, type LoadPhase, type LoadSpan, type RankLoadRecord } from "./load-profile.js";

/** Numbers that a span begins with: start and duration in nanoseconds, and how many parts follow; the first is its phase. */
export const SPAN_NUMBERS = 3;
/** Numbers of a part: place of its phase in LOAD_PHASES, nanoseconds, bytes, calls. */
export const PART_NUMBERS = 4;

/** A record whose spans are packed. */
export interface PackedLoadRecord extends Omit<RankLoadRecord, "phases" | "spans"> {
  /** Time that no span has; it is `other`. */
  readonly outsideNs: number;
  /** One a span. */
  readonly names: readonly string[];
  readonly spans: Float64Array;
}

export function unpackLoadRecord({ outsideNs, names, spans: packed, ...record }: PackedLoadRecord): RankLoadRecord {
  const totals = eachPhase(() => ({ selfNs: 0, bytes: 0, calls: 0 }));
  totals.other.selfNs = outsideNs;
  let at = 0;
  const next = (): number => {
    const value = packed[at++];
    if (value === undefined)
      throw new InternalError(`expected spans of ${names.length} names in ${packed.length} numbers`);
    return value;
  };
  const nextPart = () => {
    const part = { phase: phaseAt(next()), selfNs: next(), bytes: next(), calls: next() };
    const total = totals[part.phase];
    total.selfNs += part.selfNs;
    total.bytes += part.bytes;
    total.calls += part.calls;
    return part;
  };
  const spans = names.map((name): LoadSpan => {
    const [startNs, durationNs] = [next(), next()];
    const parts = Array.from({ length: next() }, nextPart);
    const [first] = parts;
    if (first === undefined) throw new InternalError(`the span ${name} has no phase`);
    return { name, phase: first.phase, startNs, durationNs, parts };
  });
  return { ...record, phases: totals, spans };
}

function phaseAt(place: number): LoadPhase {
  const phase = LOAD_PHASES[place];
  if (phase === undefined) throw new InternalError(`there is no phase ${place} of loading`);
  return phase;
}
