/**
 * Timelines as trace events: the JSON that Perfetto and Chrome's tracing page open ("Trace Event Format", the JSON object
 * form). Whatever shardloom draws on a timeline is written here, so that one viewer opens all of it.
 *
 * The document: `traceEvents` holds, for each track, a `thread_name` and a `thread_sort_index` event, then a complete
 * event (`ph: "X"`) a slice, ordered by start; `ts` and `dur` are microseconds. `pid` is always 0, `tid` the track's id.
 * Slices of a track nest by time. Counters follow (`ph: "C"`), a curve for each name. `otherData` holds `format`, `version` and what its writer adds.
 */

export const TRACE_FORMAT = "shardloom-trace";
/** Changes when a reader of older documents would misread newer ones. */
export const TRACE_VERSION = 1;

export type TraceValue = string | number | boolean;

/** One row of a timeline. */
export interface TraceTrack {
  readonly id: number;
  readonly name: string;
}

/** Something that took time on a track. */
export interface TraceSlice {
  readonly track: number;
  readonly name: string;
  /** What viewers filter by. */
  readonly category: string;
  readonly startUs: number;
  readonly durationUs: number;
  /** Shown when the slice is selected. */
  readonly args?: Readonly<Record<string, TraceValue>>;
}

/** A value from a time on. Counters of one name are drawn as one curve. */
export interface TraceCounter {
  readonly name: string;
  readonly timeUs: number;
  readonly value: number;
}

export interface TraceMetadataEvent {
  readonly ph: "M";
  readonly name: "thread_name" | "thread_sort_index";
  readonly pid: number;
  readonly tid: number;
  readonly args: Readonly<Record<string, TraceValue>>;
}

export interface TraceSliceEvent {
  readonly ph: "X";
  readonly name: string;
  readonly cat: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur: number;
  readonly args?: Readonly<Record<string, TraceValue>>;
}

export interface TraceCounterEvent {
  readonly ph: "C";
  readonly name: string;
  readonly pid: number;
  readonly ts: number;
  readonly args: { readonly value: number };
}

/** Plain data: `JSON.stringify` makes the file. */
export interface TraceDocument {
  readonly traceEvents: readonly (TraceMetadataEvent | TraceSliceEvent | TraceCounterEvent)[];
  readonly displayTimeUnit: "ms";
  readonly otherData: Readonly<Record<string, TraceValue>>;
}

/** A document of these tracks, shown in this order, slices, and counters. */
export function traceDocument(
  tracks: readonly TraceTrack[],
  slices: readonly TraceSlice[],
  about: Readonly<Record<string, TraceValue>> = {},
  counters: readonly TraceCounter[] = [],
): TraceDocument {
  const names = tracks.flatMap(({ id, name }, index): TraceMetadataEvent[] => [
    { ph: "M", name: "thread_name", pid: 0, tid: id, args: { name } },
    { ph: "M", name: "thread_sort_index", pid: 0, tid: id, args: { sort_index: index } },
  ]);
  // A slice that encloses others starts with the first of them: the longer one comes first.
  const ordered = slices.toSorted((a, b) => a.startUs - b.startUs || b.durationUs - a.durationUs);
  return {
    traceEvents: [...names, ...ordered.map(sliceEvent), ...counters.map(counterEvent)],
    displayTimeUnit: "ms",
    otherData: { format: TRACE_FORMAT, version: TRACE_VERSION, ...about },
  };
}

function sliceEvent({ track, name, category, startUs, durationUs, args }: TraceSlice): TraceSliceEvent {
  const event = { ph: "X", name, cat: category, pid: 0, tid: track, ts: startUs, dur: durationUs } as const;
  return args === undefined ? event : { ...event, args };
}

function counterEvent({ name, timeUs, value }: TraceCounter): TraceCounterEvent {
  return { ph: "C", name, pid: 0, ts: timeUs, args: { value } };
}
