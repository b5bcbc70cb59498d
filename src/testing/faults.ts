/**
 * Faults of ranks that take turns in one thread. Nobody waits there, so time is kept in the mind: a rank that pauses is late
 * by so much, one that hangs is late for ever, and as soon as all ranks have had their turn it is known which deadline would
 * have ended the wait. Errors are those that worker threads end in.
 */
import type { CollectiveRequest, Pass } from "../collectives/collective.js";
import { collectiveTimeout } from "../collectives/failure.js";
import { rankExited, startTimeout, stepTimeout } from "../coordinator/rank-errors.js";
import type { CoordinatorTimeouts } from "../coordinator/timeouts.js";
import { InternalError } from "../core/errors.js";
import type { AllocatorFactory } from "../layers/model-memory.js";
import type { FaultSchedule } from "../rank/faults.js";
import { type FaultStage, RankFaults } from "../rank/rank-faults.js";
import type { CheckpointInterceptor } from "../rank/rank-model.js";

/** Unwinds the loading of a rank that would have waited for longer than anybody waits for it. */
class StalledRank extends Error {}

export class SimulatedFaults {
  readonly #ranks: readonly RankFaults[];
  readonly #timeouts: CoordinatorTimeouts;
  /** Ranks that never became ready. */
  readonly #stalled: number[] = [];
  /** How long after its peers each rank arrives at the collective that is asked for. */
  readonly #lateMs: number[];
  /** Since the step began, for all ranks: they left the last collective together. */
  #elapsedMs = 0;
  #sequence = 0;

  constructor(faults: FaultSchedule, worldSize: number, timeouts: CoordinatorTimeouts) {
    this.#timeouts = timeouts;
    this.#lateMs = new Array<number>(worldSize).fill(0);
    this.#ranks = this.#lateMs.map(
      (_, rank) =>
        new RankFaults(faults, rank, {
          pause: (durationMs, stage) => this.#pause(rank, durationMs, stage),
          exit: (exitCode) => {
            throw rankExited(rank, exitCode);
          },
          exhaustHeap: () => {
            throw rankExited(
              rank,
              1,
              new Error("Worker terminated due to reaching memory limit: JS heap out of memory"),
            );
          },
        }),
    );
  }

  /** A rank's memory and checkpoint, with its faults. */
  memory(rank: number, sound: AllocatorFactory): AllocatorFactory {
    return this.#of(rank).allocator(sound);
  }

  checkpoint(rank: number): CheckpointInterceptor {
    return (opened) => this.#of(rank).checkpoint(opened);
  }

  /** Has a rank load; null if it does not get to the end. Then `allLoaded` throws, unless another rank fails first. */
  async load<Rank>(rank: number, load: () => Promise<Rank>): Promise<Rank | null> {
    try {
      return await load();
    } catch (error) {
      if (!(error instanceof StalledRank)) throw error;
      this.#stalled.push(rank);
      return null;
    }
  }

  /** Throws RankError `RANK_TIMEOUT` when ranks have not become ready. */
  allLoaded(): void {
    if (this.#stalled.length === 0) return;
    throw startTimeout(
      this.#stalled.toSorted((a, b) => a - b),
      this.#timeouts.startTimeoutMs,
    );
  }

  startStep(): void {
    this.#elapsedMs = 0;
  }

  /** A rank's pass through a step, with its faults. */
  *pass(pass: Pass, rank: number): Pass {
    const faults = this.#of(rank);
    for (const request of pass) {
      faults.before(request);
      yield request;
    }
  }

  /** All ranks ask for the same. Throws when one of them would not have waited, or the coordinator would not. */
  asked(requests: readonly CollectiveRequest[]): void {
    this.#sequence++;
    const first = Math.min(...this.#lateMs);
    const last = Math.max(...this.#lateMs);
    const { collectiveTimeoutMs, stepTimeoutMs } = this.#timeouts;
    const patientUntil = first + collectiveTimeoutMs;
    const arrivedAt = this.#elapsedMs + last;
    if (arrivedAt > stepTimeoutMs && this.#elapsedMs + patientUntil >= stepTimeoutMs) {
      throw stepTimeout([...requests.keys()], stepTimeoutMs);
    }
    if (last > patientUntil) throw this.#collectiveTimeout(requests, first, patientUntil);
    this.#elapsedMs = arrivedAt;
    this.#lateMs.fill(0);
  }

  /** What all ranks asked for is done. */
  carriedOut(requests: readonly CollectiveRequest[]): void {
    requests.forEach((request, rank) => {
      this.#of(rank).after(request);
    });
  }

  #collectiveTimeout(requests: readonly CollectiveRequest[], first: number, patientUntil: number): Error {
    const rank = this.#lateMs.indexOf(first);
    const missing = [...requests.keys()].filter((each) => (this.#lateMs[each] ?? 0) > patientUntil);
    const request = requests[rank];
    if (request === undefined) return new InternalError(`rank ${rank} asked for nothing`, { rank });
    const failed = { request, rank, worldSize: requests.length, sequence: this.#sequence };
    return collectiveTimeout(failed, missing, this.#timeouts.collectiveTimeoutMs);
  }

  #pause(rank: number, durationMs: number, stage: FaultStage): void {
    if (stage === "step") this.#lateMs[rank] = (this.#lateMs[rank] ?? 0) + durationMs;
    else if (durationMs > this.#timeouts.startTimeoutMs) throw new StalledRank(`rank ${rank} stalls`);
  }

  #of(rank: number): RankFaults {
    const faults = this.#ranks[rank];
    if (faults === undefined) throw new InternalError(`no rank ${rank} among ${this.#ranks.length}`, { rank });
    return faults;
  }
}
