/** `simulate`: the entry of the simulator. */
import type { CoordinatorTimeouts } from "../coordinator/timeouts.js";
import type { FaultSchedule } from "../rank/faults.js";
import { type ModelOptions, prepare } from "./preparation.js";
import { ShapeSimulation } from "./shape-simulation.js";
import { Simulation } from "./simulation.js";
import type { TurnOrder } from "./turn-order.js";
import type { PassInterceptor } from "./turns-executor.js";

/** What to simulate. `worldSize` and either `model` or `config` are needed. */
export interface SimulateOptions extends ModelOptions {
  /** Kernels that compute. Default "reference": plain TypeScript, everywhere the same. */
  readonly kernels?: "reference" | "native" | undefined;
  /** In which order ranks take turns: it changes no bit of any result. Default "byRank". */
  readonly order?: TurnOrder | undefined;
  /** Bytes that all tensors of one rank may take; beyond them ShardloomError `OUT_OF_MEMORY`, naming rank and tensor. */
  readonly memoryLimitBytes?: number | undefined;
  /** Wraps the pass of every rank through every step: what it yields is what the rank asks of the others. */
  readonly intercept?: PassInterceptor | undefined;
  /** What goes wrong, on which rank and when. */
  readonly faults?: FaultSchedule | undefined;
  /** Deadlines that late ranks are measured by, as for launch(). Nobody waits for them here: the error comes at once. */
  readonly timeouts?: Partial<CoordinatorTimeouts> | undefined;
  /** Throws CollectiveError `COLLECTIVE_CORRUPTED` where ranks hold different results after a collective. Default false. */
  readonly verifyCollectives?: boolean | undefined;
  /** Partition and load without bytes: nothing is read, nothing computed, and any size fits. */
  readonly shapeOnly?: boolean | undefined;
}

/**
 * Loads a model on `worldSize` ranks that take turns in the calling thread: no worker, no lock, as many ranks as wanted.
 * The same layers, loaders and runners as in production. The same options give the same bits. Close it when done.
 *
 * Throws OptionError for a wrong option, PluginError for a broken plugin, CheckpointError for a model that is missing or
 * damaged, UnsupportedError, PartitionError for a model that cannot be split into that many ranks, ShardloomError
 * `OUT_OF_MEMORY` beyond `memoryLimitBytes`, and what `faults` end in.
 */
export function simulate(options: SimulateOptions & { readonly shapeOnly: true }): Promise<ShapeSimulation>;
export function simulate(options: SimulateOptions & { readonly shapeOnly?: false | undefined }): Promise<Simulation>;
export async function simulate(options: SimulateOptions): Promise<Simulation | ShapeSimulation> {
  const preparation = await prepare(options);
  const { kernels = "reference", order = "byRank", memoryLimitBytes, intercept } = options;
  const { faults, timeouts, verifyCollectives } = options;
  const watched = { order, memoryLimitBytes, intercept, faults, timeouts, verifyCollectives };
  if (options.shapeOnly === true) return ShapeSimulation.load(preparation, watched);
  const alone = {
    ...options,
    shapeOnly: false,
    worldSize: 1,
    order: "byRank",
    memoryLimitBytes: undefined,
    intercept: undefined,
    faults: undefined,
  } as const;
  return Simulation.load(preparation, { ...watched, kernels }, () => simulate(alone));
}
