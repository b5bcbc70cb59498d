/** How long the coordinator and the ranks wait for each other. */
import { describeValue, OptionError } from "../core/errors.js";

export interface CoordinatorTimeouts {
  /** How long ranks may start without reading a byte and without one of them becoming ready. */
  readonly startTimeoutMs: number;
  /** How long a step may take. A large prefill on few cores takes minutes: this finds hangs, not slowness. */
  readonly stepTimeoutMs: number;
  /** How long a rank waits for another in a collective. Less than a step, so that the rank that is missing gets named. */
  readonly collectiveTimeoutMs: number;
  /** How long ranks may take to leave their loops when they are closed, and again for their threads to end. */
  readonly closeTimeoutMs: number;
}

const defaults: CoordinatorTimeouts = {
  startTimeoutMs: 300_000,
  stepTimeoutMs: 600_000,
  collectiveTimeoutMs: 120_000,
  closeTimeoutMs: 5_000,
};

/** The longest a timer can run. */
const LONGEST_MS = 2 ** 31 - 1;

/** Fills in what is not given. Throws OptionError `INVALID_TIMEOUT` for what is no whole number of milliseconds. */
export function timeoutsWithDefaults(given: Partial<CoordinatorTimeouts> = {}): CoordinatorTimeouts {
  const timeouts = { ...defaults, ...given };
  for (const [option, value] of Object.entries(timeouts)) {
    if (Number.isInteger(value) && value >= 1 && value <= LONGEST_MS) continue;
    const expected = `a whole number of milliseconds from 1 to ${LONGEST_MS}`;
    throw new OptionError(
      "INVALID_TIMEOUT",
      `expected ${option} to be ${expected} but received ${describeValue(value)}`,
      {
        option,
        expected,
        received: String(value),
      },
    );
  }
  return timeouts;
}
