/**
 * The coordinator: starts one thread a rank, feeds them steps, and ends them. It is the engine's Executor (it has the
 * shape of src/engine/executor.ts; the two folders do not import each other). It knows what a step costs to signal and
 * nothing of what is in it.
 */
import { createSharedReads } from "../checkpoint/shared-reads-memory.js";
import { type CollectiveRegion, createRegion } from "../collectives/region.js";
import { abortRegion } from "../collectives/shared-memory.js";
import { RequestError, type ShardloomError } from "../core/errors.js";
import { createLogger, type Logger } from "../core/logger.js";
import { checkWorldSize } from "../core/rank.js";
import { readStepProfile, type StepProfile } from "../core/step-profile.js";
import { createStepProfile, type StepProfileHandle } from "../core/step-profile-memory.js";
import type { ModelConfig } from "../models/model.js";
import type { RankReport } from "../rank/model-runner.js";
import { type RankOptions, withoutText } from "../rank/rank-options.js";
import type { RankInit } from "../rank/rank-service.js";
import { Step, type StepLimits, type Steps } from "../rank/step.js";
import { CoordinatorChannel, STEP_RUN, STEP_STOP } from "../rank/step-channel.js";
import { startTimeout, stepTimeout } from "./rank-errors.js";
import { RankGroup, ranksClosed } from "./rank-group.js";
import { type GroupPlaces, placeGroup, type ThreadOptions } from "./rank-places.js";
import { type RankProgress, StartWatch } from "./start-watch.js";
import { endThreads, RANK_ENTRY, type StartedThread, type ThreadEntry } from "./started-thread.js";
import { type CoordinatorTimeouts, timeoutsWithDefaults } from "./timeouts.js";

export type { CoordinatorTimeouts, RankProgress, ThreadEntry };

/** How long an idle rank spins for the next step before it sleeps, if it has a core to itself. */
const SPIN_MS = 0.05;

export interface CoordinatorOptions extends ThreadOptions {
  /** What every rank is told. */
  readonly ranks: RankOptions;
  /** The model's config, as its family parsed it. */
  readonly config: ModelConfig;
  /** File URLs of the plugins that every rank loads, in order (see resolvePlugin). */
  readonly plugins?: readonly string[];
  readonly timeouts?: Partial<CoordinatorTimeouts>;
  /** Called a few times a second while ranks load, once for each rank that got further. */
  readonly onProgress?: (progress: RankProgress) => void;
  /** Ranks log with loggers of their own, to the same place, at the level of this one. */
  readonly logger?: Logger;
  /** Aborting it while ranks start ends them. */
  readonly signal?: AbortSignal;
  /**
   * Has ranks compare the result of every collective. Costs time in every step, and finds memory that somebody wrote to
   * who must not: CollectiveError `COLLECTIVE_CORRUPTED`. Off by default.
   */
  readonly verifyCollectives?: boolean;
  /** Has ranks count where the time of their steps goes. Off by default. */
  readonly profileSteps?: boolean;
  /** Has ranks record how they load (`RankReport.profile`), in time since then: milliseconds of the Unix epoch. */
  readonly loadProfileOriginMs?: number;
  /**
   * Steps that may be in flight at a time, MAX_STEPS_IN_FLIGHT at most: with 2, ranks go on while the coordinator reads
   * results; with more, it reads those of several steps at a time. Default 1.
   */
  readonly stepsInFlight?: number;
  /** What runs in the threads, if not workers/rank.js: tests have ranks of their own. */
  readonly thread?: ThreadEntry;
  /** One thread a rank that was started before; the coordinator ends them, whatever happens. By default it starts them. */
  readonly started?: readonly StartedThread[];
}

/** A step that was posted, and those who wait for it. */
interface Flight {
  readonly sequence: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** What the ranks share: the arrays of a step, the signals around it, and the place where they meet. */
interface SharedMemory {
  readonly steps: Steps;
  readonly channel: CoordinatorChannel;
  readonly region: CollectiveRegion | null;
  readonly profile: StepProfileHandle | null;
}

/**
 * Starts all ranks. Resolves when they are loaded and serve steps. Rejects, when nothing of any rank is left, with
 * - OptionError `INVALID_WORLD_SIZE`, `INVALID_TIMEOUT` or, for what is no number of threads, `INVALID_OPTION`;
 * - the error of the rank that failed first: PluginError, CheckpointError, ..., naming the rank;
 * - RankError `RANK_START_FAILED`, `THREADS_UNAVAILABLE`, `RANK_EXITED` (a thread ended by itself) or `RANK_TIMEOUT` (it got no further);
 * - RequestError `CANCELLED` after `signal`.
 */
export async function startCoordinator(options: CoordinatorOptions): Promise<Coordinator> {
  const { logger = createLogger(), signal, onProgress, started = [] } = options;
  let prepared: PreparedGroup;
  try {
    prepared = prepareGroup(options, logger);
  } catch (error) {
    await endThreads(started);
    throw error;
  }
  const { worldSize, timeouts, shared, places } = prepared;
  const interrupt = (): void => interruptRanks(shared);
  // A thread that waits in native code for another one that is gone already would hold up the exit of the process.
  process.on("exit", interrupt);
  const group = new RankGroup({
    thread: options.thread ?? RANK_ENTRY,
    closeTimeoutMs: timeouts.closeTimeoutMs,
    logger,
    interrupt,
    ended: () => {
      process.off("exit", interrupt);
      shared.channel.close();
      places.release();
    },
  });
  const watch = new StartWatch({
    worldSize,
    timeoutMs: timeouts.startTimeoutMs,
    bytesLoaded: (rank) => shared.channel.bytesLoaded(rank),
    startingRanks: () => group.startingRanks,
    onProgress: (progress) => onProgress?.(progress),
    onStalled: (stalled) => group.fail(startTimeout(stalled, timeouts.startTimeoutMs)),
  });
  const cancel = (): void => group.fail(cancelled(signal));
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    const reports = await group.start(rankInits(options, shared, timeouts, places, logger), started);
    return new Coordinator(options, shared, group, timeouts, reports);
  } finally {
    signal?.removeEventListener("abort", cancel);
    watch.stop();
  }
}

interface PreparedGroup {
  readonly worldSize: number;
  readonly timeouts: CoordinatorTimeouts;
  readonly shared: SharedMemory;
  readonly places: GroupPlaces;
}

/** Everything that a group needs besides its threads. */
function prepareGroup(options: CoordinatorOptions, logger: Logger): PreparedGroup {
  const { ranks, signal } = options;
  const worldSize = checkWorldSize(ranks.worldSize);
  const timeouts = timeoutsWithDefaults(options.timeouts);
  if (signal?.aborted) throw cancelled(signal);
  const shared: SharedMemory = {
    steps: createSteps(ranks.limits, options.stepsInFlight ?? 1),
    channel: new CoordinatorChannel(worldSize),
    region: worldSize === 1 ? null : createRegion({ worldSize, payload: ranks.collectivePayload ?? "f32" }),
    profile: options.profileSteps === true ? createStepProfile(worldSize) : null,
  };
  const places = placeGroup(worldSize, options);
  const { threadsPerRank, pinning, reason } = places.placement;
  logger.info({ ranks: worldSize, threadsPerRank, pinning, reason }, "placed the threads of the ranks");
  return { worldSize, timeouts, shared, places };
}

export class Coordinator {
  readonly worldSize: number;
  readonly config: ModelConfig;
  /** The arrays to fill before `execute`, and to read results from after it, in turn. */
  readonly steps: Steps;
  /** Tokens a block of KV cache holds, and how many blocks there are. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Longest sequence. */
  readonly maxModelLength: number;
  /** How loading went, rank by rank. */
  readonly reports: readonly RankReport[];
  readonly #shared: SharedMemory;
  readonly #group: RankGroup;
  readonly #timeouts: CoordinatorTimeouts;
  /** Oldest first. */
  readonly #flights: Flight[] = [];
  #watching = false;
  #closed: Promise<void> | undefined;

  /** Made by `startCoordinator`. */
  constructor(
    options: CoordinatorOptions,
    shared: SharedMemory,
    group: RankGroup,
    timeouts: CoordinatorTimeouts,
    reports: readonly RankReport[],
  ) {
    this.worldSize = options.ranks.worldSize;
    this.config = options.config;
    this.blockSize = options.ranks.blockSize;
    this.blocks = options.ranks.blocks;
    this.maxModelLength = options.ranks.maxModelLength;
    this.steps = shared.steps;
    this.reports = reports;
    this.#shared = shared;
    this.#group = group;
    this.#timeouts = timeouts;
  }

  /**
   * Runs the step that has been written, after those before it; as many calls at a time as there are arrays. Resolves when
   * every rank is done with the arrays; where more than two steps are in flight, not before ranks are at the last of them.
   * Rejects with the error of the rank that failed, RankError `RANK_EXITED`, RankError `RANK_TIMEOUT` naming the ranks that
   * did not finish, or RankError `RANKS_CLOSED` after `close`; once it rejected, it always does.
   */
  async execute(): Promise<void> {
    if (this.#group.failure !== null) throw this.#group.failure;
    if (this.#closed !== undefined) throw ranksClosed();
    const { channel } = this.#shared;
    const sequence = channel.post(STEP_RUN);
    const done = new Promise<void>((resolve, reject) => this.#flights.push({ sequence, resolve, reject }));
    if (this.#watching) channel.awaitStep(this.#awaited);
    else void this.#watch();
    await done;
  }

  /** The step to wait for: ranks have one left when it is done, and need not wait for the next. */
  get #awaited(): number {
    return (this.#flights.at(-2) ?? this.#flights.at(-1))?.sequence ?? 0;
  }

  /** Tells whoever waits for a step, as long as there are any in flight. Never rejects. */
  async #watch(): Promise<void> {
    this.#watching = true;
    const { channel } = this.#shared;
    const { stepTimeoutMs } = this.#timeouts;
    let failure: ShardloomError | null = null;
    while (this.#flights.length > 0 && failure === null) {
      const outcome = await channel.waitDone(stepTimeoutMs, this.#awaited);
      this.#land();
      if (outcome === "timedOut") {
        this.#group.fail(stepTimeout(channel.unfinishedRanks(channel.finished + 1), stepTimeoutMs));
      }
      if (outcome !== "done") failure = await this.#failureOf(channel.failedRank);
    }
    for (const { reject } of this.#flights.splice(0)) reject(failure);
    this.#watching = false;
  }

  /** Settles the steps that are done. */
  #land(): void {
    for (;;) {
      const [oldest] = this.#flights;
      if (oldest === undefined || !this.#shared.channel.isDone(oldest.sequence)) return;
      this.#flights.shift();
      oldest.resolve();
    }
  }

  async #failureOf(suspect: number | null): Promise<ShardloomError> {
    if (this.#closed !== undefined && this.#group.failure === null) return ranksClosed();
    return await this.#group.awaitFailure(suspect);
  }

  /** Where the time of the steps so far went; null unless profiling was asked for. To be called between steps. */
  stepProfile(): StepProfile | null {
    return this.#shared.profile === null ? null : readStepProfile(this.#shared.profile);
  }

  /**
   * Ends all ranks, giving up a step in progress. Resolves when no thread, timer or handle of theirs is left; may be
   * called again. Throws RankError `RANK_NOT_STOPPED` when a rank could not be ended in time.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    if (this.#group.failure === null) {
      this.#shared.channel.post(STEP_STOP);
      interruptRanks(this.#shared);
    }
    await this.#group.end();
  }
}

function createSteps(limits: StepLimits, inFlight: number): Steps {
  return [Step.create(limits), ...Array.from({ length: inFlight - 1 }, () => Step.create(limits))];
}

/** Makes ranks leave their collectives, and the coordinator stop waiting for them. */
function interruptRanks({ region, channel }: SharedMemory): void {
  if (region !== null) abortRegion(region);
  channel.interrupt();
}

function rankInits(
  options: CoordinatorOptions,
  shared: SharedMemory,
  timeouts: CoordinatorTimeouts,
  { threads, placement }: GroupPlaces,
  logger: Logger,
): readonly RankInit[] {
  const { loadProfileOriginMs } = options;
  const { worldSize } = options.ranks;
  const spinMs = worldSize <= placement.cpus ? SPIN_MS : 0;
  const sharedReads = worldSize === 1 ? null : createSharedReads();
  const [first, ...others] = shared.steps;
  const told = withoutText(options.ranks);
  return threads.map((own, rank) => ({
    rank,
    threads: own,
    options: told,
    plugins: options.plugins ?? [],
    steps: [first.handle, ...others.map(({ handle }) => handle)],
    channel: shared.channel.handle,
    region: shared.region,
    sharedReads,
    collectiveTimeoutMs: timeouts.collectiveTimeoutMs,
    verifyCollectives: options.verifyCollectives ?? false,
    spinMs,
    logLevel: logger.level,
    profile: shared.profile,
    ...(loadProfileOriginMs === undefined ? {} : { loadProfileOriginMs }),
  }));
}

function cancelled(signal: AbortSignal | undefined): RequestError {
  return new RequestError("CANCELLED", "starting the ranks was cancelled", {}, { cause: signal?.reason });
}
