/** A load profile as a timeline that Perfetto opens: a track a rank, spans on it, and the phases of a span inside it. */
import { type TraceCounter, type TraceDocument, type TraceSlice, traceDocument } from "../core/trace-events.js";
import type { LoadProfile, LoadSpan, RankLoadProfile } from "../index.js";

const US_PER_NS = 1e-3;

/**
 * Phases of a span that alternate many times are drawn as one slice each, as long as all of them together, in the order in
 * which they first occurred. Counters say how many bytes each rank has read, and how fast it reads.
 */
export function profileTrace(profile: LoadProfile): TraceDocument {
  const { worldSize, subject, startedAt } = profile;
  const tracks = profile.ranks.map(({ rank }) => ({ id: rank, name: `rank ${rank}` }));
  const slices = profile.ranks.flatMap(({ rank, spans }) => spans.flatMap((span) => slicesOf(rank, span)));
  const counters = profile.ranks.flatMap(countersOf);
  return traceDocument(tracks, slices, { worldSize, model: subject.model, startedAt }, counters);
}

function slicesOf(track: number, { name, phase, startNs, durationNs, parts }: LoadSpan): readonly TraceSlice[] {
  const slices: TraceSlice[] = [
    { track, name, category: phase, startUs: startNs * US_PER_NS, durationUs: durationNs * US_PER_NS, args: { phase } },
  ];
  let beginNs = startNs;
  for (const part of parts) {
    const { selfNs, bytes, calls } = part;
    const rate = bytes > 0 && selfNs > 0 ? { gigabytesPerSecond: bytes / selfNs } : {};
    slices.push({
      track,
      name: part.phase,
      category: part.phase,
      startUs: beginNs * US_PER_NS,
      durationUs: selfNs * US_PER_NS,
      args: { span: name, bytes, calls, ...rate },
    });
    beginNs += selfNs;
  }
  return slices;
}

function countersOf({ rank, startNs, spans }: RankLoadProfile): readonly TraceCounter[] {
  const counters: TraceCounter[] = [];
  let totalBytes = 0;
  const count = (timeNs: number, name: string, value: number): void => {
    counters.push({ name: `rank ${rank}: ${name}`, timeUs: timeNs * US_PER_NS, value });
  };
  count(startNs, "bytes read", 0);
  for (const { startNs: beginNs, durationNs, parts } of spans) {
    const bytes = parts.reduce((sum, part) => sum + (part.phase === "read" ? part.bytes : 0), 0);
    if (bytes === 0 || durationNs === 0) continue;
    totalBytes += bytes;
    count(beginNs, "GB/s", bytes / durationNs);
    count(beginNs + durationNs, "GB/s", 0);
    count(beginNs + durationNs, "bytes read", totalBytes);
  }
  return counters;
}
