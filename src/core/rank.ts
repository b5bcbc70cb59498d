import { OptionError } from "./errors.js";

/** Which rank of how many. A plain value: nothing looks its rank up from a global. */
export interface Rank {
  /** 0 .. worldSize - 1 */
  readonly rank: number;
  readonly worldSize: number;
}

/** The most ranks that shared-memory structures are sized for. */
export const MAX_WORLD_SIZE = 64;

/** Validates a world size given by a user; throws OptionError `INVALID_WORLD_SIZE`. */
export function checkWorldSize(worldSize: unknown, option = "tensorParallelSize"): number {
  if (typeof worldSize === "number" && Number.isInteger(worldSize) && worldSize >= 1 && worldSize <= MAX_WORLD_SIZE) {
    return worldSize;
  }
  throw new OptionError(
    "INVALID_WORLD_SIZE",
    `expected ${option} to be a whole number from 1 to ${MAX_WORLD_SIZE} but received ${String(worldSize)}`,
    { option, expected: `1..${MAX_WORLD_SIZE}`, received: String(worldSize) },
  );
}
