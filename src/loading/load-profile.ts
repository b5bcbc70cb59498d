/**
 * What a load profile is: where the time of each rank went while it loaded, phase by phase and tensor by tensor, and which
 * rank kept the others waiting. Plain data; docs/load-profile.md says how to read it, docs/load-profile.schema.json what
 * it looks like as JSON. All times are whole nanoseconds, so that sums are exact; instants count from `startedAt`.
 */
import type { ThreadCounters } from "../core/thread-counters.js";

export const LOAD_PROFILE_FORMAT = "shardloom-load-profile";
/** Changes when a reader of older profiles would misread newer ones; new members alone do not change it. */
export const LOAD_PROFILE_VERSION = 1;

/**
 * What a rank does while it loads, in the order in which it comes to it: opens files and reads headers (`index`); reads
 * bytes of tensors (`read`); cuts, converts and copies them (`shard`); quantizes what is not quantized on disk
 * (`quantize`); prepares layouts of kernels (`repack`); waits for other ranks (`wait`). `other` is what is left: plugins
 * are imported, layers built, memory reserved.
 */
export const LOAD_PHASES = ["index", "read", "shard", "quantize", "repack", "wait", "other"] as const;

export type LoadPhase = (typeof LOAD_PHASES)[number];

/** Time of a phase itself, without that of phases inside it, and what it dealt with. */
export interface PhaseTotals {
  readonly selfNs: number;
  /**
   * Bytes that `index` and `read` got from files, that `shard` put into parameters, that `quantize` made, and that
   * the parameters of layers hold whose weights kernels rearranged (`repack`).
   */
  readonly bytes: number;
  /** How often bytes were dealt with: reads of files, tensors, calls of a quantized tensor, layers. */
  readonly calls: number;
}

/** A phase within a span. */
export interface SpanPart extends PhaseTotals {
  readonly phase: LoadPhase;
}

/** One tensor being loaded, one layer being prepared, or another stage with a name. Spans of a rank do not overlap. */
export interface LoadSpan {
  /** Of a tensor, its name as the layers see it; of a layer, its prefix. */
  readonly name: string;
  /** The phase that it is part of; what happens inside may belong to others. */
  readonly phase: LoadPhase;
  readonly startNs: number;
  readonly durationNs: number;
  /** In the order in which they first occurred. Their times add up to `durationNs`. */
  readonly parts: readonly SpanPart[];
}

export interface LoadPhaseProfile extends PhaseTotals {
  /** 10^9 bytes a second; null where there were no bytes or no time. */
  readonly gigabytesPerSecond: number | null;
}

/** One rank. The times of its phases add up to `totalNs`. */
export interface RankLoadProfile {
  readonly rank: number;
  readonly startNs: number;
  /** Until every rank was ready. */
  readonly totalNs: number;
  /** `totalNs` without waiting for others. */
  readonly busyNs: number;
  readonly phases: Readonly<Record<LoadPhase, LoadPhaseProfile>>;
  /** False where the loader does not tell of its reads: then all time in its tensors counts as `read`. */
  readonly readsObserved: boolean;
  /** Memory of its parameters, and what is reserved for its KV cache, in bytes. */
  readonly parameterBytes: number;
  readonly kvCacheBytes: number;
  /** What the system counted for the rank's thread; absent where the system does not say. */
  readonly system?: ThreadCounters;
  readonly spans: readonly LoadSpan[];
}

/** How far the slowest rank is behind the others. */
export interface LoadSkew {
  /** Busy time of the slowest rank over the median; 1 where there is but one rank. */
  readonly ratio: number;
  readonly slowestRank: number;
  readonly slowestNs: number;
  readonly medianNs: number;
  /** The phase in which the slowest rank loses most against the median of that phase, and how much. Null if it loses none. */
  readonly phase: LoadPhase | null;
  readonly excessNs: number;
}

/** What was loaded, and where. */
export interface LoadSubject {
  readonly model: string;
  readonly loadFormat: string;
  /** Method; null if the weights are not quantized. */
  readonly quantization: string | null;
  readonly dtype: string;
  /** Bytes of the weight files. */
  readonly checkpointBytes: number;
}

export interface LoadMachine {
  readonly platform: string;
  readonly arch: string;
  readonly cpu: string;
  readonly cores: number;
  readonly node: string;
}

export interface LoadProfile {
  readonly format: typeof LOAD_PROFILE_FORMAT;
  readonly version: typeof LOAD_PROFILE_VERSION;
  /** When loading began, ISO 8601. */
  readonly startedAt: string;
  readonly subject: LoadSubject;
  readonly machine: LoadMachine;
  readonly worldSize: number;
  /** From when the files of the model were there until every rank was ready; starting threads is part of it. */
  readonly totalNs: number;
  /** Bytes of tensors that all ranks read together. */
  readonly bytesRead: number;
  /** `bytesRead` over the size of the checkpoint; null where that is nothing. */
  readonly readAmplification: number | null;
  /** Most memory that the process has ever had resident, in bytes. */
  readonly peakMemoryBytes: number;
  readonly skew: LoadSkew;
  readonly ranks: readonly RankLoadProfile[];
}

/** What a rank records by itself: it cannot know how long it waits for the others at the end. */
export interface RankLoadRecord extends Omit<RankLoadProfile, "totalNs" | "busyNs" | "phases"> {
  readonly endNs: number;
  readonly phases: Readonly<Record<LoadPhase, PhaseTotals>>;
}

export interface LoadFacts {
  readonly startedAt: string;
  readonly subject: LoadSubject;
  readonly machine: LoadMachine;
  readonly peakMemoryBytes: number;
}

/** Name of the span in which a rank that is ready waits for the last one. */
export const FINAL_WAIT = "until every rank is ready";

/** The profile of a group. There is at least one record. */
export function assembleLoadProfile(facts: LoadFacts, records: readonly RankLoadRecord[]): LoadProfile {
  const totalNs = Math.max(...records.map(({ endNs }) => endNs));
  const ranks = records.map((record) => rankProfile(record, totalNs));
  const bytesRead = ranks.reduce((sum, { phases }) => sum + phases.read.bytes, 0);
  const { checkpointBytes } = facts.subject;
  return {
    format: LOAD_PROFILE_FORMAT,
    version: LOAD_PROFILE_VERSION,
    startedAt: facts.startedAt,
    subject: facts.subject,
    machine: facts.machine,
    worldSize: records.length,
    totalNs,
    bytesRead,
    readAmplification: checkpointBytes === 0 ? null : bytesRead / checkpointBytes,
    peakMemoryBytes: facts.peakMemoryBytes,
    skew: skewOf(ranks),
    ranks,
  };
}

function rankProfile({ endNs, phases, spans, ...record }: RankLoadRecord, readyNs: number): RankLoadProfile {
  const waitNs = readyNs - endNs;
  const wait = { ...phases.wait, selfNs: phases.wait.selfNs + waitNs };
  const totalNs = readyNs - record.startNs;
  const part: SpanPart = { phase: "wait", selfNs: waitNs, bytes: 0, calls: 0 };
  const last: LoadSpan = { name: FINAL_WAIT, phase: "wait", startNs: endNs, durationNs: waitNs, parts: [part] };
  return {
    ...record,
    totalNs,
    busyNs: totalNs - wait.selfNs,
    phases: eachPhase((phase) => withRate(phase === "wait" ? wait : phases[phase])),
    spans: waitNs > 0 ? [...spans, last] : spans,
  };
}

function withRate({ selfNs, bytes, calls }: PhaseTotals): LoadPhaseProfile {
  return { selfNs, bytes, calls, gigabytesPerSecond: selfNs === 0 || bytes === 0 ? null : bytes / selfNs };
}

/** A value for every phase. */
export function eachPhase<Value>(of: (phase: LoadPhase) => Value): Record<LoadPhase, Value> {
  return {
    index: of("index"),
    read: of("read"),
    shard: of("shard"),
    quantize: of("quantize"),
    repack: of("repack"),
    wait: of("wait"),
    other: of("other"),
  };
}

function skewOf(ranks: readonly RankLoadProfile[]): LoadSkew {
  const medianNs = median(ranks.map(({ busyNs }) => busyNs));
  const slowest = ranks.reduce((most, rank) => (rank.busyNs > most.busyNs ? rank : most));
  let phase: LoadPhase | null = null;
  let excessNs = 0;
  for (const candidate of LOAD_PHASES) {
    // Who waits is not late because of it.
    if (candidate === "wait") continue;
    const usualNs = median(ranks.map(({ phases }) => phases[candidate].selfNs));
    const excess = slowest.phases[candidate].selfNs - usualNs;
    if (excess <= excessNs) continue;
    phase = candidate;
    excessNs = excess;
  }
  const ratio = medianNs === 0 ? 1 : slowest.busyNs / medianNs;
  return { ratio, slowestRank: slowest.rank, slowestNs: slowest.busyNs, medianNs, phase, excessNs };
}

/** Of an even number of values, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? 0;
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? 0;
  return (upper + lower) / 2;
}

/** A tensor on the rank that took longest over it. */
export interface SlowTensor {
  readonly name: string;
  readonly rank: number;
  readonly durationNs: number;
  /** The phase that took most of it. */
  readonly phase: LoadPhase;
  /** Bytes that the rank read from files for it. */
  readonly bytesRead: number;
  /** Median over the ranks that load it. */
  readonly medianNs: number;
}

/** The tensors that took longest, on their slowest rank. */
export function slowestTensors(profile: Pick<LoadProfile, "ranks">, most: number): readonly SlowTensor[] {
  const byName = new Map<string, { rank: number; span: LoadSpan }[]>();
  for (const { rank, spans } of profile.ranks) {
    for (const span of spans) {
      if (!isTensorSpan(span)) continue;
      const others = byName.get(span.name);
      if (others === undefined) byName.set(span.name, [{ rank, span }]);
      else others.push({ rank, span });
    }
  }
  const slowest = [...byName.values()].flatMap((loads) => {
    const [worst] = loads.toSorted((a, b) => b.span.durationNs - a.span.durationNs);
    if (worst === undefined) return [];
    const medianNs = median(loads.map(({ span }) => span.durationNs));
    return [slowTensor(worst.rank, worst.span, medianNs)];
  });
  return slowest.sort((a, b) => b.durationNs - a.durationNs).slice(0, most);
}

/** Whether a span is a tensor being loaded; one that only bears the name of its phase is none. */
export function isTensorSpan({ phase, name }: Pick<LoadSpan, "phase" | "name">): boolean {
  return (phase === "read" || phase === "shard" || phase === "quantize") && name !== phase;
}

function slowTensor(rank: number, { name, durationNs, phase, parts }: LoadSpan, medianNs: number): SlowTensor {
  const most = parts.reduce<SpanPart | null>((best, part) => {
    return best === null || part.selfNs > best.selfNs ? part : best;
  }, null);
  const bytesRead = parts.reduce((sum, part) => sum + (part.phase === "read" ? part.bytes : 0), 0);
  return { name, rank, durationNs, phase: most?.phase ?? phase, bytesRead, medianNs };
}
