/** Faults of ranks in worker threads: a group as launch() starts it, on which something goes wrong. */
import { type CoordinatorTimeouts, startCoordinator, type ThreadEntry } from "../coordinator/coordinator.js";
import { groupLoadProfile, profileOrigin } from "../coordinator/group-load-profile.js";
import { createLogger } from "../core/logger.js";
import { threadEntry } from "../core/package-files.js";
import { createEngine, type Engine, prepareText } from "../engine/engine.js";
import { importPlugin, resolvePlugin } from "../loading/plugins.js";
import { selectFamily } from "../models/registry.js";
import { checkFaults, type FaultSchedule, isCollectiveFault } from "../rank/faults.js";
import { type ModelOptions, prepare } from "./preparation.js";

/** The options of a simulation, for threads. `worldSize`, `faults` and either `model` or `config` are needed. */
export interface LaunchWithFaultsOptions extends Omit<ModelOptions, "plugins"> {
  /** Package names or paths: every thread imports them. */
  readonly plugins?: readonly string[] | undefined;
  /** What goes wrong, on which rank and when. */
  readonly faults: FaultSchedule;
  /** How long ranks wait for each other; a test of a hang wants to shorten what it waits for. */
  readonly timeouts?: Partial<CoordinatorTimeouts> | undefined;
  /** Has ranks compare the result of every collective: CollectiveError `COLLECTIVE_CORRUPTED`. Default false. */
  readonly verifyCollectives?: boolean | undefined;
  /** Has ranks record how they load, delays included: `engine.loadProfile`. Default false. */
  readonly loadProfile?: boolean | undefined;
  /** Default "silent": a fault is expected. */
  readonly logLevel?: string | undefined;
}

/** The heap of a thread that is going to fill it. */
const HEAP_TO_FILL = { maxOldGenerationSizeMb: 48, maxYoungGenerationSizeMb: 8 };

/**
 * Loads a model on `worldSize` worker threads and returns an engine that serves it, as launch() does, until a fault happens.
 * A fault while loading rejects; one in a step rejects the requests in flight and all later ones. In either case all threads
 * end. The engine must be closed.
 *
 * Throws OptionError `INVALID_OPTION` for a fault that there cannot be, what launch() throws, and what `faults` end in.
 */
export async function launchWithFaults(options: LaunchWithFaultsOptions): Promise<Engine> {
  const logger = createLogger(options.logLevel ?? "silent");
  const urls = (options.plugins ?? []).map((specifier) => resolvePlugin(specifier));
  const plugins = await Promise.all(urls.map(importPlugin));
  const { ranks } = await prepare({ ...options, plugins });
  const { description } = ranks;
  const originMs = profileOrigin();
  const profiled = options.loadProfile === true;
  const executor = await startCoordinator({
    ranks,
    config: selectFamily(description.config).parseConfig(description.config),
    plugins: urls,
    logger,
    thread: faultyThread(checkFaults(options.faults, ranks.worldSize)),
    verifyCollectives: options.verifyCollectives ?? false,
    ...(profiled ? { loadProfileOriginMs: originMs } : {}),
    ...(options.timeouts === undefined ? {} : { timeouts: options.timeouts }),
  });
  try {
    const subject = { model: ranks.path, originMs };
    const loadProfile = profiled ? groupLoadProfile(executor.reports, ranks, subject) : undefined;
    return createEngine({ executor, text: prepareText(description, executor.config), logger, loadProfile });
  } catch (error) {
    await executor.close();
    throw error;
  }
}

function faultyThread(faults: FaultSchedule): ThreadEntry {
  const url = threadEntry("faulty-rank");
  const fillsHeap = faults.some((fault) => isCollectiveFault(fault) && fault.kind === "outOfMemory");
  return { url, data: faults, ...(fillsHeap ? { resourceLimits: HEAP_TO_FILL } : {}) };
}
