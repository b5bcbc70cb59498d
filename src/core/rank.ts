import { OptionError } from "./errors.js";

/** Which rank of how many. A plain value: nothing looks its rank up from a global. */
export interface Rank {
  /** 0 .. worldSize - 1 */
  readonly rank: number;
  readonly worldSize: number;
}

/** The most ranks that shared-memory structures are sized for. */
export const MAX_WORLD_SIZE = 64;

/**
 * Validates a world size given by a user; throws OptionError `INVALID_WORLD_SIZE`, whose message says what else may be given:
 * `"auto" or `, say.
 */
export function checkWorldSize(worldSize: unknown, option = "tensorParallelSize", others = ""): number {
  if (typeof worldSize === "number" && Number.isInteger(worldSize) && worldSize >= 1 && worldSize <= MAX_WORLD_SIZE) {
    return worldSize;
  }
  const received = String(worldSize);
  throw new OptionError(
    "INVALID_WORLD_SIZE",
    `expected ${option} to be ${others}a whole number from 1 to ${MAX_WORLD_SIZE} but received ${received}`,
    { option, expected: `1..${MAX_WORLD_SIZE}`, received },
  );
}
