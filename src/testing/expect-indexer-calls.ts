/** Shard indexers are asked exactly what they should be, and nothing is computed for parameters without one. */
import { isDeepStrictEqual } from "node:util";
import { SimulationAssertionError } from "./assertion-error.js";
import type { IndexerCall } from "./placement-recorder.js";
import type { ShapeSimulation } from "./shape-simulation.js";
import type { Simulation } from "./simulation.js";

/** Fields that a call must have; those left out may be anything. */
export type ExpectedIndexerCall = Partial<IndexerCall>;

export interface ExpectedIndexerCalls {
  /** All calls, rank by rank, in the order of loading. Empty: no parameter has a shard indexer. */
  readonly calls: readonly ExpectedIndexerCall[];
  /** How often the original offsets of a layer were computed, over all ranks. Default 0. */
  readonly offsetComputations?: number | undefined;
}

/**
 * Checks every question to a shard indexer while the ranks were loaded, and how often original offsets were computed: as
 * often as expected, only for parameters with an indexer, and at most once a rank, layer and scope. Works without bytes.
 *
 * Throws SimulationAssertionError naming parameter, rank, shard id and field, expected, received.
 */
export function expectIndexerCalls(simulation: Simulation | ShapeSimulation, expected: ExpectedIndexerCalls): void {
  const { indexerCalls } = simulation;
  for (const [i, call] of expected.calls.entries()) checkCall(i, call, indexerCalls[i]);
  const surplus = indexerCalls[expected.calls.length];
  if (surplus !== undefined) {
    throw failure(`call ${expected.calls.length}`, surplus, `${expected.calls.length} calls`, `${indexerCalls.length}`);
  }
  checkOffsets(simulation, expected.offsetComputations ?? 0);
}

function checkCall(i: number, expected: ExpectedIndexerCall, received: IndexerCall | undefined): void {
  if (received === undefined) throw failure(`call ${i}`, expected, JSON.stringify(expected), "no call");
  for (const [field, value] of Object.entries(expected)) {
    const actual: unknown = Reflect.get(received, field);
    if (isDeepStrictEqual(actual, value)) continue;
    throw failure(`call ${i}: ${field}`, received, JSON.stringify(value), JSON.stringify(actual));
  }
}

function checkOffsets({ offsetComputations, indexerCalls }: Simulation | ShapeSimulation, expected: number): void {
  const seen = new Set<string>();
  for (const { rank, layer, scope } of offsetComputations) {
    const key = `${rank} ${layer} ${scope}`;
    const asked = indexerCalls.some((call) => call.rank === rank && call.parameter.startsWith(`${layer}.`));
    const once = !seen.has(key);
    seen.add(key);
    if (asked && once) continue;
    const words = once ? "none, as no parameter of it has a shard indexer" : "one a rank and scope";
    throw new SimulationAssertionError(
      `original offsets (${scope}) of ${layer} on rank ${rank}: expected ${words}, but they were computed${once ? "" : " again"}`,
      { layer, rank, expected: once ? 0 : 1, received: once ? 1 : 2 },
    );
  }
  if (offsetComputations.length === expected) return;
  throw new SimulationAssertionError(
    `original offsets: expected ${expected} computations but received ${offsetComputations.length}`,
    { expected, received: offsetComputations.length },
  );
}

function failure(
  what: string,
  { parameter, rank, shardId }: ExpectedIndexerCall,
  expected: string,
  received: string,
): SimulationAssertionError {
  const place = [parameter, rank === undefined ? "" : `rank ${rank}`, shardId === undefined ? "" : `shard ${shardId}`];
  const where = place.filter((word) => word !== undefined && word !== "").join(", ");
  return new SimulationAssertionError(
    `shard indexer, ${what}${where === "" ? "" : ` (${where})`}: expected ${expected} but received ${received}`,
    {
      ...(parameter === undefined ? {} : { tensor: parameter }),
      ...(rank === undefined ? {} : { rank }),
      ...(shardId === undefined ? {} : { shardId }),
      expected,
      received,
    },
  );
}
