/** Two load profiles side by side: what became of each phase of each rank, and of the tensors that changed most. */
import type { LoadPhase } from "../index.js";
import { isTensorSpan } from "../loading/load-profile.js";

export interface ComparableSpan {
  readonly name: string;
  readonly phase: LoadPhase;
  readonly durationNs: number;
}

export interface ComparableRank {
  readonly rank: number;
  readonly busyNs: number;
  readonly phases: ReadonlyMap<LoadPhase, { readonly selfNs: number; readonly bytes: number }>;
  readonly spans: readonly ComparableSpan[];
}

/** As much of a profile as is compared. */
export interface ComparableProfile {
  readonly model: string;
  readonly startedAt: string;
  readonly totalNs: number;
  readonly bytesRead: number;
  readonly ranks: readonly ComparableRank[];
}

/** A number before and after; null where there is none. */
export interface Change {
  readonly before: number | null;
  readonly after: number | null;
  /** After by before; null where one is missing or the first is 0. */
  readonly ratio: number | null;
}

export interface PhaseChange {
  readonly selfNs: Change;
  readonly bytes: Change;
}

export interface RankChange {
  readonly rank: number;
  readonly busyNs: Change;
  readonly phases: Readonly<Record<LoadPhase, PhaseChange>>;
}

/** A tensor, on whichever rank took longest over it. */
export interface TensorChange {
  readonly name: string;
  readonly durationNs: Change;
}

export interface ComparedProfile {
  readonly model: string;
  readonly startedAt: string;
  readonly worldSize: number;
}

export interface ProfileComparison {
  readonly format: "shardloom-load-profile-diff";
  readonly version: 1;
  readonly before: ComparedProfile;
  readonly after: ComparedProfile;
  readonly totalNs: Change;
  readonly bytesRead: Change;
  readonly ranks: readonly RankChange[];
  /** Those that changed most, by time, come first. */
  readonly tensors: readonly TensorChange[];
}

/** Ranks are compared by number, also where there are more of them in one profile. `top` limits the tensors. */
export function compareProfiles(before: ComparableProfile, after: ComparableProfile, top: number): ProfileComparison {
  const numbers = new Set([...before.ranks, ...after.ranks].map(({ rank }) => rank));
  return {
    format: "shardloom-load-profile-diff",
    version: 1,
    before: comparedOf(before),
    after: comparedOf(after),
    totalNs: change(before.totalNs, after.totalNs),
    bytesRead: change(before.bytesRead, after.bytesRead),
    ranks: [...numbers]
      .sort((a, b) => a - b)
      .map((number) => {
        const [old, recent] = [before, after].map(({ ranks }) => ranks.find(({ rank }) => rank === number));
        return rankChange(number, old, recent);
      }),
    tensors: tensorChanges(before, after).slice(0, top),
  };
}

function comparedOf({ model, startedAt, ranks }: ComparableProfile): ComparedProfile {
  return { model, startedAt, worldSize: ranks.length };
}

function rankChange(rank: number, before: ComparableRank | undefined, after: ComparableRank | undefined): RankChange {
  const phaseChange = (phase: LoadPhase): PhaseChange => {
    const [old, recent] = [before?.phases.get(phase), after?.phases.get(phase)];
    return { selfNs: change(old?.selfNs, recent?.selfNs), bytes: change(old?.bytes, recent?.bytes) };
  };
  return {
    rank,
    busyNs: change(before?.busyNs, after?.busyNs),
    phases: {
      index: phaseChange("index"),
      read: phaseChange("read"),
      shard: phaseChange("shard"),
      quantize: phaseChange("quantize"),
      repack: phaseChange("repack"),
      wait: phaseChange("wait"),
      other: phaseChange("other"),
    },
  };
}

function tensorChanges(before: ComparableProfile, after: ComparableProfile): readonly TensorChange[] {
  const [old, recent] = [longestByTensor(before), longestByTensor(after)];
  const names = new Set([...old.keys(), ...recent.keys()]);
  const changes = [...names].map((name) => ({ name, durationNs: change(old.get(name), recent.get(name)) }));
  const size = ({ durationNs }: TensorChange): number => Math.abs((durationNs.after ?? 0) - (durationNs.before ?? 0));
  return changes.sort((a, b) => size(b) - size(a));
}

function longestByTensor({ ranks }: ComparableProfile): ReadonlyMap<string, number> {
  const longest = new Map<string, number>();
  for (const span of ranks.flatMap(({ spans }) => spans)) {
    if (!isTensorSpan(span)) continue;
    longest.set(span.name, Math.max(span.durationNs, longest.get(span.name) ?? 0));
  }
  return longest;
}

function change(before: number | undefined, after: number | undefined): Change {
  const ratio = before === undefined || after === undefined || before === 0 ? null : after / before;
  return { before: before ?? null, after: after ?? null, ratio };
}
